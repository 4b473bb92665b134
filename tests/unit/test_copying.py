"""Copying all that a store keeps, on stores in memory."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

import pytest

from usersvc.adapters.memory import InMemoryArchive, InMemoryUsers
from usersvc.application import copying
from usersvc.application.copying import Comparison, NotACopy, compare, copy
from usersvc.application.ports import Cause, IdempotencyKey, Places, UserRecord
from usersvc.domain.user import PasswordHash, User

NOW = datetime(2026, 1, 31, 9, 30, 0, 123456, tzinfo=UTC)
MINUTE = timedelta(minutes=1)


@pytest.fixture(autouse=True)
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying, "AT_ONCE", 3)


def person(email: str) -> User:
    registration = User.register(email=email, password="correct horse battery", age=30)
    return registration.complete(PasswordHash("$hash"), at=NOW)


async def add(users: InMemoryUsers, *names: str) -> list[User]:
    people = [person(f"{name}@example.com") for name in names]
    for user in people:
        await users.add(user, key=IdempotencyKey.named(user.email.typed))
    return people


def crowd(count: int, *, first: int = 0) -> list[str]:
    return [f"user{number}" for number in range(first, first + count)]


def unheard(_: int) -> None:
    pass


async def copied(source: InMemoryUsers, target: InMemoryUsers) -> list[tuple[int, int, int]]:
    """What was copied, already there and removed, of each kind."""
    tallies = await copy(source.archive, target.archive, advance=unheard)
    return [(tally.copied, tally.already_there, tally.removed) for tally in tallies]


async def compared(source: InMemoryUsers, target: InMemoryUsers) -> Comparison:
    return await compare(source.archive, target.archive, advance=unheard)


async def is_same(source: InMemoryUsers, target: InMemoryUsers) -> bool:
    return (await compared(source, target)).is_same


@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 6, 7])
async def test_everything_is_copied_once(count: int) -> None:
    source, target = InMemoryUsers(), InMemoryUsers()
    await add(source, *crowd(count))

    assert await copied(source, target) == [(count, 0, 0)] * 3
    comparison = await compared(source, target)
    assert comparison.is_same
    assert [(each.name, each.count) for each in comparison.target] == [
        ("users", count),
        ("outbox entries", count),
        ("idempotency keys", count),
    ]
    assert await target.archive.users(after=None, limit=100) == await source.archive.users(after=None, limit=100)
    assert await target.outbox.entries() == await source.outbox.entries()
    assert await copied(source, target) == [(0, count, 0)] * 3


async def test_who_came_and_who_went_is_caught_up_with() -> None:
    source, target = InMemoryUsers(), InMemoryUsers()
    people = await add(source, *crowd(20))
    await copied(source, target)

    for user in (people[0], *people[5:15], people[19]):
        await source.remove(user.id)
    # One of them has come again.
    await add(source, "user5", "new")

    assert await copied(source, target) == [(2, 8, 12), (2, 8, 0), (2, 8, 0)]
    assert await is_same(source, target)


async def test_a_mail_that_was_sent_from_the_source_is_not_sent_again_from_the_target() -> None:
    source, target = InMemoryUsers(), InMemoryUsers()
    await add(source, "alice", "bob", "carol", "dave")
    await copied(source, target)

    alice, bob, carol, _ = await source.outbox.lease(now=NOW, until=NOW + MINUTE, limit=4)
    await source.outbox.delivered(alice)
    await source.outbox.postpone(bob, due_at=NOW + 5 * MINUTE, reason="later")
    await source.outbox.set_aside(carol, reason="550 no such user")

    # Dave's is leased: it is due when the lease ends, with this attempt counted.
    assert await copied(source, target) == [(0, 4, 0), (3, 0, 4), (0, 4, 0)]
    assert await is_same(source, target)
    told = {entry.event.email.partition("@")[0]: entry for entry in await target.outbox.entries()}
    assert {name: (entry.attempts, entry.due_at, entry.reason, entry.lease) for name, entry in told.items()} == {
        "bob": (1, NOW + 5 * MINUTE, "later", None),
        "carol": (1, None, "550 no such user", None),
        "dave": (1, NOW + MINUTE, None, None),
    }


async def test_a_copy_that_was_broken_off_goes_on_where_it_was() -> None:
    source, target = InMemoryUsers(), InMemoryUsers()
    await add(source, *crowd(20))

    class Broken(Exception):
        pass

    done = 0

    def break_off(more: int) -> None:
        nonlocal done
        done += more
        if done >= 9:
            raise Broken

    with pytest.raises(Broken):
        await copy(source.archive, target.archive, advance=break_off)
    assert await target.archive.count() == 9
    assert not await is_same(source, target)

    assert await copied(source, target) == [(11, 9, 0), (20, 0, 0), (20, 0, 0)]
    assert await is_same(source, target)


async def test_positions_that_the_source_has_given_out_are_not_given_out_by_the_target() -> None:
    source, target = InMemoryUsers(), InMemoryUsers()
    *_, bob = await add(source, "alice", "bob")
    await copied(source, target)
    await add(source, "carol")
    [carol] = list(await source.archive.users(after=2, limit=1))
    await source.remove(carol.id)
    await source.remove(bob.id)

    # Whoever compares now sees that it is not only about who is there.
    await target.remove(bob.id)
    comparison = await compared(source, target)
    assert comparison.source == comparison.target
    assert not comparison.is_same

    await copied(source, target)
    assert await is_same(source, target)
    assert await target.archive.places() == Places(3, 3)


async def test_a_target_that_is_in_use_is_refused_and_left_alone() -> None:
    source, target = InMemoryUsers(), InMemoryUsers()
    await add(source, "alice")
    await add(target, "bob")
    with pytest.raises(NotACopy, match="in use"):
        await copied(source, target)
    assert [user.email for user in await target.archive.users(after=None, limit=9)] == ["bob@example.com"]


async def test_a_copy_on_which_a_service_has_started_is_refused() -> None:
    source, target = InMemoryUsers(), InMemoryUsers()
    await add(source, "alice")
    await copied(source, target)
    await target.archive.end_copy()
    await target.archive.stand_alone()
    # Who was told from there would be told again.
    [entry] = await target.outbox.lease(now=NOW, until=NOW + MINUTE, limit=1)
    await target.outbox.delivered(entry)
    with pytest.raises(NotACopy, match="in use"):
        await copied(source, target)
    assert await target.outbox.entries() == []


async def test_the_copy_of_another_source_is_refused() -> None:
    first, second, target = InMemoryUsers(), InMemoryUsers(), InMemoryUsers()
    await add(first, *crowd(7))
    await add(second, *crowd(7))
    await copied(first, target)
    with pytest.raises(NotACopy, match="never held"):
        await copied(second, target)
    assert await is_same(first, target)


async def test_who_came_to_a_copy_by_another_way_is_not_thrown_away() -> None:
    source, target = InMemoryUsers(), InMemoryUsers()
    await add(source, *crowd(4))
    await copied(source, target)
    await target.add(person("imported@example.com"))
    with pytest.raises(NotACopy, match="never held"):
        await copied(source, target)
    assert await target.archive.count() == 5


# --- comparing ------------------------------------------------------------------------------------------------------


@dataclass
class Tampered:
    """What is changed in a copy."""

    archive: InMemoryArchive

    async def user(self, **changes: object) -> None:
        [user] = await self.archive.users(after=4, limit=1)
        await self.archive.put_users([replace(user, **changes)], instead_of=[5])  # type: ignore[arg-type]  # any field

    async def entry(self, **changes: object) -> None:
        [entry] = await self.archive.entries(after=4, limit=1)
        await self.archive.put_entries([replace(entry, **changes)], instead_of=[5])  # type: ignore[arg-type]  # any field

    async def key(self, **changes: object) -> None:
        [key] = await self.archive.keys(after=None, limit=1)
        await self.archive.put_keys([replace(key, **changes)], instead_of=[key.digest])  # type: ignore[arg-type]  # any field


MICROSECOND = timedelta(microseconds=1)
CHANGES: list[tuple[str, dict[str, object]]] = [
    ("user", {"email": "USER4@example.com"}),
    ("user", {"mailbox": "user4@example.org"}),
    ("user", {"age": 31}),
    ("user", {"password_hash": PasswordHash("$hush")}),
    ("user", {"registered_at": NOW + MICROSECOND}),
    ("user", {"id": person("a@example.com").id}),
    ("user", {"position": 99}),
    ("entry", {"id": 99}),
    ("entry", {"attempts": 1}),
    ("entry", {"due_at": NOW + MICROSECOND}),
    ("entry", {"due_at": None}),
    ("entry", {"reason": "none"}),
    ("entry", {"cause": Cause("request")}),
    ("key", {"digest": "0" * 64}),
    ("key", {"used_at": NOW - MICROSECOND}),
]


@pytest.mark.parametrize(("what", "changes"), CHANGES, ids="-".join)
async def test_whatever_differs_is_noticed(what: str, changes: dict[str, object]) -> None:
    source, target = InMemoryUsers(), InMemoryUsers()
    await add(source, *crowd(9))
    await copied(source, target)
    assert await is_same(source, target)
    await getattr(Tampered(target.archive), what)(**changes)
    assert not await is_same(source, target)


async def test_a_checksum_tells_of_all_that_is_there_and_of_nothing_else() -> None:
    source, target, other = InMemoryUsers(), InMemoryUsers(), InMemoryUsers()
    await add(source, "alice", "bob")
    await copied(source, target)
    one, same = await compared(source, target), await compared(target, source)
    assert one.digest == same.digest
    await add(other, "alice", "bob")
    assert (await compared(other, other)).digest != one.digest


async def test_a_source_that_changes_meanwhile_is_told_as_different_and_caught_up_with() -> None:
    source, target = InMemoryUsers(), InMemoryUsers()
    people = await add(source, *crowd(10))

    class Busy(InMemoryArchive):
        """Somebody registers, and somebody goes, whenever the source is read."""

        turn = 0

        async def users(self, *, after: int | None, limit: int) -> list[UserRecord]:
            self.turn += 1
            await add(source, f"new{self.turn}")
            await source.remove(people[self.turn].id)
            return await super().users(after=after, limit=limit)

    busy = Busy(source._people, source.outbox)
    await copy(busy, target.archive, advance=unheard)
    assert not (await compare(source.archive, target.archive, advance=unheard)).is_same
    await copied(source, target)
    assert await is_same(source, target)


async def test_progress_is_told_in_users() -> None:
    source, target = InMemoryUsers(), InMemoryUsers()
    await add(source, *crowd(7))
    told: list[int] = []
    await copy(source.archive, target.archive, advance=told.append)
    assert sum(told) == 7
    told.clear()
    await compare(source.archive, target.archive, advance=told.append)
    assert sum(told) == 14
