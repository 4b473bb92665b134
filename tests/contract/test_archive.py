"""What every ``CompleteArchive`` has to do for a store to be copied, run against each of them."""

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from usersvc.adapters.memory import InMemoryUsers
from usersvc.adapters.postgres import PostgresUsers
from usersvc.adapters.sqlite import SqliteUsers
from usersvc.application.ports import (
    CAUSE,
    Cause,
    CompleteStore,
    IdempotencyKey,
    KeyRecord,
    Order,
    OutboxEntry,
    Places,
    StorageUnavailable,
    UserRecord,
)
from usersvc.domain.events import UserRegistered
from usersvc.domain.user import PasswordHash, User

NOW = datetime(2026, 1, 31, 9, 30, 0, 123456, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture(params=["memory", "sqlite", "postgres"])
async def users(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[CompleteStore]:
    if request.param == "memory":
        yield InMemoryUsers()
    elif request.param == "sqlite":
        async with SqliteUsers(tmp_path / "users.db") as sqlite_users:
            yield sqlite_users
    else:
        async with PostgresUsers(request.getfixturevalue("postgres_url")) as postgres_users:
            yield postgres_users


def person(email: str) -> User:
    registration = User.register(email=email, password="correct horse battery", age=30)
    return registration.complete(PasswordHash("$hash"), at=NOW)


def record(position: int, email: str | None = None) -> UserRecord:
    typed = email or f"Üser{position}@example.com"
    return UserRecord(
        position=position,
        id=uuid4(),
        email=typed,
        mailbox=typed.lower(),
        age=18 + position,
        password_hash=PasswordHash(f"$hash{position}"),
        registered_at=NOW + position * MINUTE,
    )


def entry_of(user: UserRecord, entry_id: int) -> OutboxEntry:
    return OutboxEntry(
        id=entry_id,
        event=UserRegistered(user.id, user.email, user.registered_at),
        attempts=0,
        due_at=user.registered_at,
        reason=None,
    )


def key_of(user: UserRecord, name: str = "key") -> KeyRecord:
    return KeyRecord(IdempotencyKey.named(name).digest, user.id, user.registered_at)


async def everybody(users: CompleteStore) -> list[UserRecord]:
    return await users.archive.users(after=None, limit=100)


async def everything_told(users: CompleteStore) -> list[OutboxEntry]:
    return await users.archive.entries(after=None, limit=100)


async def all_keys(users: CompleteStore) -> list[KeyRecord]:
    return await users.archive.keys(after=None, limit=100)


# --- reading --------------------------------------------------------------------------------------------------------


async def test_the_outbox_and_the_keys_are_read_in_pieces_and_in_order(users: CompleteStore) -> None:
    keys = [IdempotencyKey.named(f"key {number}") for number in range(5)]
    for number, key in enumerate(keys):
        await users.add(person(f"user{number}@example.com"), key=key)
    ids = [user.id for user in await everybody(users)]

    entries = await everything_told(users)
    assert [entry.event.user_id for entry in entries] == ids
    assert entries == await users.outbox.entries()
    assert await users.archive.entries(after=entries[1].id, limit=2) == entries[2:4]
    assert await users.archive.entries(after=entries[-1].id, limit=2) == []

    used = sorted(
        (KeyRecord(key.digest, user_id, NOW) for key, user_id in zip(keys, ids, strict=True)),
        key=lambda used: used.digest,
    )
    assert await all_keys(users) == used
    assert await users.archive.keys(after=used[1].digest, limit=2) == used[2:4]
    assert await users.archive.keys(after=used[-1].digest, limit=2) == []


async def test_a_leased_entry_is_read_as_nobodys_and_due_when_the_lease_ends(users: CompleteStore) -> None:
    await users.add(person("alice@example.com"))
    [leased] = await users.outbox.lease(now=NOW, until=NOW + MINUTE, limit=1)
    assert leased.lease is not None
    assert await everything_told(users) == [replace(leased, lease=None)]


async def test_places_are_told_also_of_what_is_gone(users: CompleteStore) -> None:
    assert await users.archive.places() == Places(0, 0)
    alice, bob = person("alice@example.com"), person("bob@example.com")
    await users.add(alice)
    await users.add(bob)
    await users.remove(bob.id)
    assert await users.archive.places() == Places(2, 2)


# --- storing --------------------------------------------------------------------------------------------------------


async def test_users_are_stored_as_they_are_and_where_they_were(users: CompleteStore) -> None:
    put = [record(3), record(7, "straße@BÜCHER.example"), record(1000)]
    await users.archive.put_users(put, instead_of=[])

    assert await everybody(users) == put
    assert await users.outbox.entries() == []
    page = await users.page(limit=10, order=Order.DESC, after=1000, mailbox=None)
    assert [user["id"] for user in page.users] == [str(put[1].id), str(put[0].id)]
    assert [user["email"] for user in page.users] == ["straße@BÜCHER.example", put[0].email]


async def test_users_can_be_stored_before_those_who_are_there(users: CompleteStore) -> None:
    late, early = record(7), record(3)
    await users.archive.put_users([late], instead_of=[])
    await users.archive.put_users([early], instead_of=[])
    assert await everybody(users) == [early, late]
    page = await users.page(limit=1, order=Order.ASC, after=None, mailbox=None)
    assert [user["id"] for user in page.users] == [str(early.id)]


async def test_who_is_replaced_goes_with_mails_and_keys_and_nobody_else_does(users: CompleteStore) -> None:
    gone, kept = record(1), record(2)
    await users.archive.put_users([gone, kept], instead_of=[])
    await users.archive.put_entries([entry_of(gone, 1), entry_of(kept, 2)], instead_of=[])
    await users.archive.put_keys([key_of(gone, "a"), key_of(kept, "b")], instead_of=[])

    new = record(3)
    await users.archive.put_users([new], instead_of=[1, 99])

    assert await everybody(users) == [kept, new]
    assert await everything_told(users) == [entry_of(kept, 2)]
    assert await all_keys(users) == [key_of(kept, "b")]
    assert await users.find(gone.id) is None


async def test_who_has_the_mailbox_or_the_id_of_one_who_is_stored_goes(users: CompleteStore) -> None:
    mailbox_taken, id_taken, other = record(1), record(2), record(3)
    await users.archive.put_users([mailbox_taken, id_taken, other], instead_of=[])
    await users.archive.put_keys([key_of(mailbox_taken, "a"), key_of(id_taken, "b")], instead_of=[])
    await users.archive.put_entries([entry_of(id_taken, 1)], instead_of=[])

    again = replace(record(5), email=mailbox_taken.email, mailbox=mailbox_taken.mailbox)
    same_id = replace(record(6), id=id_taken.id)
    await users.archive.put_users([again, same_id], instead_of=[])

    assert await everybody(users) == [other, again, same_id]
    assert await everything_told(users) == []
    assert await all_keys(users) == []


async def test_storing_the_same_again_comes_to_the_same(users: CompleteStore) -> None:
    user = record(4)
    entry, key = entry_of(user, 9), key_of(user)
    for _ in range(2):
        await users.archive.put_users([user], instead_of=[])
        await users.archive.put_entries([entry], instead_of=[])
        await users.archive.put_keys([key], instead_of=[])
    assert (await everybody(users), await everything_told(users), await all_keys(users)) == ([user], [entry], [key])


async def test_entries_are_stored_whole_and_worked_on_from_there(users: CompleteStore) -> None:
    user = record(1)
    put = [
        entry_of(user, 3),
        replace(entry_of(user, 4), attempts=61, due_at=None, reason="550 no such user"),
        replace(entry_of(user, 5), attempts=2, due_at=NOW + 9 * MINUTE, cause=Cause("request", "a" * 32, "b" * 16)),
        replace(entry_of(user, 8), attempts=1, cause=Cause("request")),
    ]
    await users.archive.put_entries([put[0], replace(put[1], lease=str(uuid4())), *put[2:]], instead_of=[])

    assert await users.outbox.entries() == put
    state = await users.outbox.state()
    assert (state.pending, state.set_aside) == (3, 1)
    due = await users.outbox.lease(now=NOW + 2 * MINUTE, until=NOW + 5 * MINUTE, limit=10)
    assert [(entry.id, entry.attempts) for entry in due] == [(3, 1), (8, 2)]
    await users.outbox.delivered(due[0])
    assert await users.outbox.retry(4, now=NOW)
    assert [entry.id for entry in await users.outbox.entries()] == [4, 5, 8]


async def test_entries_go_and_are_replaced(users: CompleteStore) -> None:
    user = record(1)
    first, second, third = (entry_of(user, number) for number in (1, 2, 3))
    await users.archive.put_entries([first, second, third], instead_of=[])
    later = replace(second, attempts=1, due_at=NOW + 5 * MINUTE, reason="later")
    await users.archive.put_entries([later], instead_of=[1, 2, 99])
    assert await users.outbox.entries() == [later, third]


async def test_keys_are_stored_for_those_who_are_there_and_known_again(users: CompleteStore) -> None:
    user, stranger = record(1), record(2)
    await users.archive.put_users([user], instead_of=[])
    await users.archive.put_keys([key_of(user, "a"), key_of(stranger, "b")], instead_of=[])

    assert await all_keys(users) == [key_of(user, "a")]
    earlier = await users.registered_with(IdempotencyKey.named("a"), at=user.registered_at + MINUTE)
    assert earlier is not None
    assert (earlier.user["id"], earlier.password_hash) == (str(user.id), user.password_hash)
    assert await users.registered_with(IdempotencyKey.named("a"), at=user.registered_at + 1440 * MINUTE) is None

    later = replace(key_of(user, "a"), used_at=NOW + 99 * MINUTE)
    await users.archive.put_keys([later, key_of(user, "c")], instead_of=[])
    assert sorted(await all_keys(users), key=lambda key: key.used_at) == [key_of(user, "c"), later]
    await users.archive.put_keys([], instead_of=[later.digest])
    assert await all_keys(users) == [key_of(user, "c")]


async def test_places_that_were_given_out_are_not_given_out_again(users: CompleteStore) -> None:
    await users.archive.put_places(Places(position=41, entry=17))
    # Nothing leads back.
    await users.archive.put_places(Places(position=3, entry=2))
    assert await users.archive.places() == Places(41, 17)
    await users.add(person("alice@example.com"))
    assert [user.position for user in await everybody(users)] == [42]
    assert [entry.id for entry in await users.outbox.entries()] == [18]
    assert await users.archive.places() == Places(42, 18)


async def test_no_places_at_all_can_be_stored(users: CompleteStore) -> None:
    await users.archive.put_places(Places(position=0, entry=0))
    await users.add(person("alice@example.com"))
    assert await users.archive.places() == Places(1, 1)


async def test_a_thousand_of_each_can_be_stored_at_once(users: CompleteStore) -> None:
    people = [record(number) for number in range(1, 1001)]
    await users.archive.put_users(people, instead_of=range(2000, 3000))
    await users.archive.put_entries([entry_of(user, user.position) for user in people], instead_of=range(2000, 3000))
    await users.archive.put_keys([key_of(user, str(user.position)) for user in people], instead_of=["0" * 64] * 1000)
    assert await users.archive.users(after=None, limit=2000) == people
    assert len(await users.archive.entries(after=None, limit=2000)) == 1000
    assert len(await users.archive.keys(after=None, limit=2000)) == 1000


# --- copies ---------------------------------------------------------------------------------------------------------


async def test_an_empty_store_can_become_a_copy_and_a_store_in_its_own_right(users: CompleteStore) -> None:
    await users.archive.stand_alone()
    assert await users.archive.begin_copy()
    await users.archive.put_users([record(1)], instead_of=[])
    with pytest.raises(StorageUnavailable, match="copy that is not finished"):
        await users.archive.stand_alone()

    await users.archive.end_copy()
    # Until a service starts, it can be brought up to date.
    assert await users.archive.begin_copy()
    with pytest.raises(StorageUnavailable, match="copy that is not finished"):
        await users.archive.stand_alone()
    await users.archive.end_copy()
    await users.archive.stand_alone()

    assert not await users.archive.begin_copy()
    await users.archive.stand_alone()


async def test_a_store_in_which_there_is_something_does_not_become_a_copy(users: CompleteStore) -> None:
    await users.add(person("alice@example.com"))
    assert not await users.archive.begin_copy()
    await users.archive.stand_alone()
    [entry] = await users.outbox.entries()
    await users.remove(entry.event.user_id)

    await users.archive.put_entries([entry], instead_of=[])
    assert not await users.archive.begin_copy()
    await users.archive.put_entries([], instead_of=[entry.id])
    assert await users.archive.begin_copy()


async def test_the_cause_of_an_entry_comes_along(users: CompleteStore) -> None:
    CAUSE.set(Cause("4711", "a" * 32, "b" * 16))
    await users.add(person("alice@example.com"))
    [entry] = await everything_told(users)
    assert entry.cause == Cause("4711", "a" * 32, "b" * 16)


async def test_a_user_whose_address_a_later_rule_forbids_stays_readable(users: CompleteStore) -> None:
    stored = [record(1, "ali\u3164ce@example.com"), record(2, "alice@[127.0.0.1]")]
    await users.archive.put_users(stored, instead_of=[])

    page = await users.page(limit=10, order=Order.ASC, after=None, mailbox=None)
    assert [view["email"] for view in page.users] == [user.email for user in stored]
    assert await users.find(stored[0].id) == page.users[0]
    assert await users.archive.users(after=None, limit=10) == stored
    assert await users.remove(stored[0].id)
