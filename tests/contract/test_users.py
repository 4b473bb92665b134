"""What every ``Users`` adapter has to do, run against each of them."""

import asyncio
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from usersvc.application.ports import (
    EarlierRegistration,
    IdempotencyKey,
    IdempotencyKeyUsed,
    Order,
    Page,
    Users,
    view_of,
)
from usersvc.domain.errors import EmailAlreadyRegistered
from usersvc.domain.user import PasswordHash, User

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


def person(email: str, *, at: datetime = NOW) -> User:
    registration = User.register(email=email, password="correct horse battery", age=30)
    return registration.complete(PasswordHash("$hash"), at=at)


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


async def test_an_unknown_id_is_nobodys(users: Users) -> None:
    assert await users.find(uuid4()) is None


async def test_a_mailbox_belongs_to_one_user(users: Users) -> None:
    alice = person("jos\u00e9@example.com")
    await users.add(alice)

    with pytest.raises(EmailAlreadyRegistered):
        await users.add(person("JOSE\u0301@EXAMPLE.COM"))

    assert (await page(users)).users == [view_of(alice)]


async def test_of_many_who_want_one_mailbox_at_once_one_gets_it(users: Users) -> None:
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


async def test_many_can_be_added_at_once(users: Users) -> None:
    await asyncio.gather(*(users.add(person(f"user{n}@example.com")) for n in range(60)))
    assert len((await page(users, limit=100)).users) == 60


async def test_a_page_of_nobody_is_empty(users: Users) -> None:
    assert await page(users) == Page(lines=b"", next_after=None)


async def test_order_is_that_of_adding_whatever_the_clocks_said(users: Users) -> None:
    await users.add(person("first@example.com", at=NOW))
    await users.add(person("second@example.com", at=NOW - timedelta(hours=1)))
    await users.add(person("third@example.com", at=NOW))

    assert names(await page(users)) == ["first", "second", "third"]
    assert names(await page(users, order=Order.DESC)) == ["third", "second", "first"]


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 6])
@pytest.mark.parametrize("order", Order)
async def test_pages_hold_everybody_once(users: Users, order: Order, limit: int) -> None:
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


async def test_the_last_full_page_has_no_next(users: Users) -> None:
    await add_people(users, "a", "b")
    assert (await page(users, limit=2)).next_after is None


async def test_who_comes_while_paging_up_is_seen_at_the_end(users: Users) -> None:
    await add_people(users, "a", "b", "c")
    first = await page(users, limit=2)
    await add_people(users, "d")
    second = await page(users, limit=2, after=first.next_after)

    assert names(first) + names(second) == ["a", "b", "c", "d"]


async def test_who_comes_while_paging_down_moves_nobody(users: Users) -> None:
    await add_people(users, "a", "b", "c")
    first = await page(users, limit=2, order=Order.DESC)
    await add_people(users, "d")
    second = await page(users, limit=2, order=Order.DESC, after=first.next_after)

    assert names(first) + names(second) == ["c", "b", "a"]


async def test_a_page_behind_the_end_is_empty(users: Users) -> None:
    await add_people(users, "a")
    assert names(await page(users, after=10**17)) == []
    assert names(await page(users, order=Order.DESC, after=1)) == []
    assert names(await page(users, order=Order.DESC, after=10**17)) == ["a"]


async def test_one_mailbox_can_be_asked_for(users: Users) -> None:
    await add_people(users, "alice", "bob")

    assert names(await page(users, mailbox="bob@example.com")) == ["bob"]
    assert names(await page(users, mailbox="bob@example.com", order=Order.DESC)) == ["bob"]
    assert names(await page(users, mailbox="carol@example.com")) == []
    assert names(await page(users, mailbox="alice@example.com", after=1)) == []
    assert (await page(users, mailbox="alice@example.com", limit=1)).next_after is None


async def test_the_store_answers(users: Users) -> None:
    await users.check()


KEY = IdempotencyKey.named("0b9f6f1c")


async def test_a_key_tells_what_was_registered_under_it(users: Users) -> None:
    alice = person("alice@example.com")
    assert await users.registered_with(KEY, at=NOW) is None
    await users.add(alice, key=KEY)

    assert await users.registered_with(KEY, at=NOW) == EarlierRegistration(view_of(alice), alice.password_hash)
    assert await users.registered_with(IdempotencyKey.named("another"), at=NOW) is None


async def test_a_key_is_used_once_whosever_mailbox_it_is(users: Users) -> None:
    await users.add(person("alice@example.com"), key=KEY)
    for email in ("alice@example.com", "bob@example.com"):
        with pytest.raises(IdempotencyKeyUsed):
            await users.add(person(email), key=KEY)
    assert names(await page(users)) == ["alice"]


async def test_who_is_not_added_uses_up_no_key(users: Users) -> None:
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


async def test_of_many_at_once_under_one_key_one_is_added(users: Users) -> None:
    people = [person(f"person{number}@example.com") for number in range(20)]
    outcomes = await asyncio.gather(*(users.add(each, key=KEY) for each in people), return_exceptions=True)

    assert sum(outcome is None for outcome in outcomes) == 1
    assert sum(isinstance(outcome, IdempotencyKeyUsed) for outcome in outcomes) == 19
    [shown] = (await page(users)).users
    earlier = await users.registered_with(KEY, at=NOW)
    assert earlier is not None
    assert earlier.user == shown
