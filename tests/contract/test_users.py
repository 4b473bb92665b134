"""The contract of every ``Users`` adapter."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from tests.fakes import NOW, person
from usersvc.application.idempotency import EarlierRegistration, IdempotencyKey, IdempotencyKeyUsed
from usersvc.application.ports import Store
from usersvc.application.ports import Store as Users
from usersvc.application.read_models import Order, Page, UserRecord, view_of
from usersvc.domain.email_address import EmailAddress
from usersvc.domain.errors import EmailAlreadyRegistered
from usersvc.domain.user import User


async def add_people(users: Users, *names: str) -> None:
    for name in names:
        await users.add(person(f"{name}@example.com"))


async def page(
    users: Users, *, limit: int = 10, order: Order = Order.ASC, after: int | None = None, mailbox: str | None = None
) -> Page:
    return await users.page(limit=limit, order=order, after=after, mailbox=mailbox)


def names(shown: Page) -> list[str]:
    return [user["email"].partition("@")[0] for user in shown.users]


async def test_a_user_is_shown_as_added_and_without_the_password(users: Users) -> None:
    alice = person("Älice@example.com")
    await users.add(alice)

    assert await users.find(alice.id) == view_of(alice)
    assert (await page(users)).users == [view_of(alice)]
    assert set(view_of(alice)) == {"id", "email", "age", "registered_at"}


async def test_a_stored_user_whose_address_a_later_rule_refuses_stays_readable(users: Users) -> None:
    address = object.__new__(EmailAddress)  # as an earlier version accepted it
    for name, value in {"typed": "ali\u3164ce@example.com", "mailbox": "ali\u3164ce@example.com"}.items():
        object.__setattr__(address, name, value)
    alice = replace(person("alice@example.com"), email=address)
    await users.add(alice)
    assert await users.find(alice.id) == view_of(alice)
    assert (await page(users)).users == [view_of(alice)]
    assert await users.remove(alice.id)


async def test_an_unknown_id_is_not_found(users: Users) -> None:
    assert await users.find(uuid4()) is None


async def test_a_mailbox_belongs_to_one_user(users: Users) -> None:
    alice = person("jos\u00e9@example.com")
    await users.add(alice)

    with pytest.raises(EmailAlreadyRegistered):
        await users.add(person("JOSE\u0301@EXAMPLE.COM"))

    assert (await page(users)).users == [view_of(alice)]


async def test_one_of_many_concurrent_registrations_gets_the_mailbox(users: Users) -> None:
    async def attempt(spelling: str) -> bool:
        try:
            await users.add(person(spelling))
        except EmailAlreadyRegistered:
            return False
        return True

    spellings = ["alice@example.com", "Alice@example.com", "ALICE@EXAMPLE.COM", '"alice"@example.com'] * 13
    outcomes = await asyncio.gather(*map(attempt, spellings))

    assert sum(outcomes) == 1
    assert len((await page(users)).users) == 1


async def test_a_page_of_an_empty_store_is_empty(users: Users) -> None:
    assert await page(users) == Page(lines=b"", next_after=None)


async def test_order_is_that_of_additions_not_of_clocks(users: Users) -> None:
    await users.add(person("first@example.com", at=NOW))
    await users.add(person("second@example.com", at=NOW - timedelta(hours=1)))
    await users.add(person("third@example.com", at=NOW))

    assert names(await page(users)) == ["first", "second", "third"]
    assert names(await page(users, order=Order.DESC)) == ["third", "second", "first"]


@pytest.mark.parametrize("limit", [1, 2, 5, 6])
@pytest.mark.parametrize("order", Order)
async def test_pages_have_all_users_once(users: Users, order: Order, limit: int) -> None:
    await add_people(users, "a", "b", "c", "d", "e")

    seen: list[str] = []
    after = None
    while True:
        shown = await page(users, limit=limit, order=order, after=after)
        assert len(shown.users) <= limit
        seen += names(shown)
        after = shown.next_after
        if after is None:
            break

    assert seen == sorted("abcde", reverse=order is Order.DESC)


async def test_a_page_after_the_end_is_empty(users: Users) -> None:
    await add_people(users, "a")
    assert names(await page(users, after=10**17)) == []
    assert names(await page(users, order=Order.DESC, after=1)) == []
    assert names(await page(users, order=Order.DESC, after=10**17)) == ["a"]


async def test_a_list_can_be_filtered_by_mailbox(users: Users) -> None:
    await add_people(users, "alice", "bob")

    assert names(await page(users, mailbox="bob@example.com")) == ["bob"]
    assert names(await page(users, mailbox="bob@example.com", order=Order.DESC)) == ["bob"]
    assert names(await page(users, mailbox="carol@example.com")) == []
    assert names(await page(users, mailbox="alice@example.com", after=1)) == []
    assert (await page(users, mailbox="alice@example.com", limit=1)).next_after is None


async def test_check_returns_while_the_store_is_available(users: Users) -> None:
    await users.check()


KEY = IdempotencyKey.named("0b9f6f1c")


async def test_a_key_finds_its_registration(users: Users) -> None:
    alice = person("alice@example.com")
    assert await users.registered_with(KEY, at=NOW) is None
    await users.add(alice, key=KEY)

    assert await users.registered_with(KEY, at=NOW) == EarlierRegistration(view_of(alice), alice.password_hash)
    assert await users.registered_with(IdempotencyKey.named("another"), at=NOW) is None


async def test_a_key_is_used_once_for_any_mailbox(users: Users) -> None:
    await users.add(person("alice@example.com"), key=KEY)
    for email in ("alice@example.com", "bob@example.com"):
        with pytest.raises(IdempotencyKeyUsed):
            await users.add(person(email), key=KEY)
    assert names(await page(users)) == ["alice"]


async def test_a_refused_registration_uses_no_key(users: Users) -> None:
    await users.add(person("alice@example.com"))
    with pytest.raises(EmailAlreadyRegistered):
        await users.add(person("alice@example.com"), key=KEY)
    assert await users.registered_with(KEY, at=NOW) is None
    await users.add(person("bob@example.com"), key=KEY)


async def test_a_key_lives_a_day(users: Users) -> None:
    await users.add(person("alice@example.com"), key=KEY)
    end = NOW + timedelta(hours=24)

    assert await users.registered_with(KEY, at=end - timedelta(microseconds=1)) is not None
    assert await users.registered_with(KEY, at=end) is None
    with pytest.raises(IdempotencyKeyUsed):
        await users.add(person("bob@example.com", at=end - timedelta(microseconds=1)), key=KEY)
    bob = person("bob@example.com", at=end)
    await users.add(bob, key=KEY)
    assert await users.registered_with(KEY, at=end) == EarlierRegistration(view_of(bob), bob.password_hash)


async def test_one_of_many_concurrent_registrations_with_one_key_is_added(users: Users) -> None:
    people = [person(f"person{number}@example.com") for number in range(20)]
    outcomes = await asyncio.gather(*(users.add(each, key=KEY) for each in people), return_exceptions=True)

    assert sum(outcome is None for outcome in outcomes) == 1
    assert sum(isinstance(outcome, IdempotencyKeyUsed) for outcome in outcomes) == 19
    [shown] = (await page(users)).users
    earlier = await users.registered_with(KEY, at=NOW)
    assert earlier is not None
    assert earlier.user == shown


# --- many at once, and removal -------------------------------------------------------------------------------------


def quiet(email: str, *, at: datetime = NOW) -> User:
    """A user without events."""
    return replace(person(email, at=at), events=())


async def all_batches(users: Store, *, limit: int = 100) -> list[UserRecord]:
    return await users.archive.users(after=None, limit=limit)


async def test_a_batch_is_stored_in_order_after_existing_users(users: Store) -> None:
    await add_people(users, "first")
    many = [quiet(f"{name}@example.com") for name in "dacb"]
    assert await users.add_all(many) == [True] * 4

    assert names(await page(users)) == ["first", "d", "a", "c", "b"]
    assert [await users.find(user.id) for user in many] == [view_of(user) for user in many]


async def test_users_with_a_taken_mailbox_or_id_are_skipped_and_reported(users: Store) -> None:
    alice = person("alice@example.com")
    await users.add(alice)
    bob, carol, refused = quiet("bob@example.com"), quiet("carol@example.com"), quiet("ALICE@example.com")
    batch = [
        (refused, False),
        (replace(quiet("dora@example.com"), id=alice.id), False),
        (bob, True),
        (quiet("Bob@example.com"), False),
        (carol, True),
        (replace(quiet("erin@example.com"), id=carol.id), False),
        # An id that was refused earlier in the batch is free.
        (replace(quiet("fay@example.com"), id=refused.id), True),
    ]
    assert await users.add_all([user for user, _ in batch]) == [is_stored for _, is_stored in batch]
    assert await users.add_all([]) == []

    assert names(await page(users)) == ["alice", "bob", "carol", "fay"]
    for user in (alice, carol):
        assert await users.find(user.id) == view_of(user)


async def test_concurrent_batches_store_each_mailbox_once(users: Store) -> None:
    batches = [[quiet(f"user{n}@example.com") for n in range(20)] for _ in range(5)]
    outcomes = await asyncio.gather(*(users.add_all(batch) for batch in batches))

    assert [sum(column) for column in zip(*outcomes, strict=True)] == [1] * 20
    assert len(await all_batches(users)) == 20


async def test_the_archive_returns_all_fields_unchanged(users: Store) -> None:
    many = [
        quiet("Jo\u0308rg.M\u00fcller@B\u00fccher.example", at=NOW + timedelta(microseconds=123456)),
        quiet('"a \\"b\\\\"@example.com', at=datetime(1970, 1, 1, tzinfo=UTC)),
        quiet("o'neil+{}%s?$1@example.com"),
    ]
    await users.add_all(many)
    records = await all_batches(users)
    assert records == [
        UserRecord.of(user, position=record.position) for user, record in zip(many, records, strict=True)
    ]
    assert "$hash" not in repr(records)


@pytest.mark.parametrize("limit", [1, 3, 7])
async def test_the_archive_lists_all_users_once_in_order_of_position(users: Store, limit: int) -> None:
    await add_people(users, *"fedcba")
    seen: list[UserRecord] = []
    while shown := await users.archive.users(after=seen[-1].position if seen else None, limit=limit):
        assert len(shown) <= limit
        seen += shown

    assert [record.email[0] for record in seen] == list("fedcba")
    assert [record.position for record in seen] == sorted({record.position for record in seen})


async def test_the_archive_finds_users_by_mailbox_or_id(users: Store) -> None:
    many = [quiet(f"{name}@example.com") for name in "abcdef"]
    await users.add_all(many)
    a, b, c, *_ = many
    found = await users.archive.find_matching(
        mailboxes=["c@example.com", "z@example.com", "a@example.com", "a@example.com"], ids=[b.id, uuid4(), a.id]
    )

    assert found == [
        UserRecord.of(user, position=record.position) for user, record in zip([a, b, c], found, strict=True)
    ]
    assert await users.archive.find_matching(mailboxes=[], ids=[]) == []
    assert [record.id for record in await users.archive.find_matching(mailboxes=[], ids=[c.id])] == [c.id]


async def test_the_archive_finds_thousands_in_one_call(users: Store) -> None:
    many = [quiet(f"user{n}@example.com") for n in range(3000)]
    assert all(await users.add_all(many))
    found = await users.archive.find_matching(
        mailboxes=[user.email.mailbox for user in many[::2]], ids=[user.id for user in many[1::2]]
    )
    assert [record.id for record in found] == [user.id for user in many]


async def test_a_removed_user_is_found_nowhere(users: Store) -> None:
    alice, bob = person("alice@example.com"), person("bob@example.com")
    await users.add(alice, key=KEY)
    await users.add(bob)
    assert await users.remove(alice.id) is True

    assert await users.find(alice.id) is None
    assert await users.registered_with(KEY, at=NOW) is None
    assert names(await page(users)) == ["bob"]
    assert names(await page(users, mailbox="alice@example.com")) == []
    assert [record.id for record in await all_batches(users)] == [bob.id]
    assert await users.archive.find_matching(mailboxes=["alice@example.com"], ids=[alice.id]) == []


async def test_a_user_is_removed_once(users: Store) -> None:
    alice = person("alice@example.com")
    await users.add(alice)
    assert await users.remove(uuid4()) is False
    assert sum(await asyncio.gather(*(users.remove(alice.id) for _ in range(10)))) == 1


async def test_mailbox_id_and_key_of_a_removed_user_are_free_again(users: Store) -> None:
    alice = person("alice@example.com")
    await users.add(alice, key=KEY)
    await users.remove(alice.id)
    again = replace(person("ALICE@example.com"), id=alice.id)
    await users.add(again, key=KEY)

    assert await users.find(alice.id) == view_of(again)
    assert await users.registered_with(KEY, at=NOW) == EarlierRegistration(view_of(again), again.password_hash)


async def test_a_position_is_never_used_again(users: Store) -> None:
    await add_people(users, "a", "b", "c")
    last = (await all_batches(users))[-1]
    await users.remove(last.id)
    await users.add_all([quiet("d@example.com")])
    await add_people(users, "e")

    *_, d, e = await all_batches(users)
    assert last.position < d.position < e.position
