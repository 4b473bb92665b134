"""The contract of every ``Outbox`` adapter, with the ``Users`` that fill it."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from tests.contract.adapters import Views
from tests.contract.test_users import add_people
from tests.fakes import NOW, person
from usersvc.application.outbox_entries import RATE_LIMITED, OutboxEntry, OutboxState
from usersvc.application.ports import Outbox, Store
from usersvc.application.request_context import RequestContext, request_context
from usersvc.domain.errors import EmailAlreadyRegistered
from usersvc.domain.mail_limits import MAILBOX, MailLimit

MINUTE = timedelta(minutes=1)
LONG_AFTER = NOW + 100 * MINUTE

Result = Callable[[Outbox, OutboxEntry], Coroutine[Any, Any, None]]


async def lease(
    outbox: Outbox, *, at: datetime = NOW, until: datetime | None = None, limit: int = 10
) -> list[OutboxEntry]:
    return await outbox.lease(now=at, until=until or at + MINUTE, limit=limit)


def names(entries: list[OutboxEntry]) -> list[str]:
    return [entry.event.email.partition("@")[0] for entry in entries]


async def delivered(outbox: Outbox, entry: OutboxEntry) -> None:
    await outbox.delivered(entry)


async def rescheduled(outbox: Outbox, entry: OutboxEntry) -> None:
    await outbox.reschedule(entry, due_at=NOW + timedelta(days=1), reason="too late")


async def dead_letter(outbox: Outbox, entry: OutboxEntry) -> None:
    await outbox.dead_letter(entry, reason="too late")


RESULTS = [delivered, rescheduled, dead_letter]


@pytest.mark.parametrize("email", ["alice@example.com", "jo\u0308rg.Müller@bücher.example", '"a \\"b"@example.com'])
async def test_an_event_is_stored_with_its_user(users: Store, outbox: Outbox, email: str) -> None:
    alice = person(email)
    await users.add(alice)

    assert await users.find(alice.id)
    [entry] = await outbox.entries()
    assert (entry.event,) == alice.events
    assert (entry.event.email, entry.event.occurred_at) == (email, NOW)
    assert (entry.attempts, entry.due_at, entry.reason, entry.lease) == (0, NOW, None, None)


async def test_entries_are_read_in_pieces_and_in_order(users: Store, outbox: Outbox) -> None:
    await add_people(users, *"abcde")
    entries = await outbox.entries()
    assert names(entries) == list("abcde")
    assert await outbox.entries(after=entries[1].id, limit=2) == entries[2:4]
    assert await outbox.entries(after=entries[1].id) == entries[2:]
    assert await outbox.entries(after=entries[-1].id, limit=2) == []


async def test_an_entry_rescheduled_by_a_wrong_clock_is_leased(users: Store, outbox: Outbox) -> None:
    await add_people(users, "alice", "bob")
    alice, bob = await lease(outbox)
    await outbox.reschedule(alice, due_at=NOW + timedelta(days=3650), reason="busy")
    await outbox.reschedule(bob, due_at=NOW + timedelta(hours=1), reason="busy")

    entries = await outbox.lease(now=NOW, until=NOW + MINUTE, limit=10, latest=NOW + timedelta(hours=2))

    assert names(entries) == ["alice"]


async def test_an_empty_outbox_has_nothing_to_lease(outbox: Outbox) -> None:
    assert await lease(outbox) == []
    assert await outbox.next_due() is None
    assert await outbox.entries() == []


async def test_the_limit_of_a_lease_is_respected_longest_due_and_first_registered_first(
    users: Store, outbox: Outbox
) -> None:
    for name, minutes in {"third": 3, "first": 1, "fifth": 4, "second": 2, "fourth": 3}.items():
        await users.add(person(f"{name}@example.com", at=NOW + minutes * MINUTE))

    assert names(await lease(outbox, at=LONG_AFTER, limit=3)) == ["first", "second", "third"]
    assert names(await lease(outbox, at=LONG_AFTER, limit=3)) == ["fourth", "fifth"]


async def test_an_entry_is_leased_by_one_worker_only(views: Views) -> None:
    await add_people(views[0], *(f"user{n}" for n in range(40)))
    leases = await asyncio.gather(*(lease(views[n % 2].outbox, limit=3) for n in range(20)))

    held = [entry for leased in leases for entry in leased]
    assert Counter(names(held)) == {f"user{n}": 1 for n in range(40)}
    assert len({(entry.id, entry.lease) for entry in held}) == 40


async def test_a_lease_expires(views: Views) -> None:
    await add_people(views[0], "alice")
    [first] = await lease(views[0].outbox)

    assert await lease(views[1].outbox, at=NOW + MINUTE - timedelta(microseconds=1)) == []
    [second] = await lease(views[1].outbox, at=NOW + MINUTE)
    assert (second.id, second.attempts) == (first.id, 2)
    assert second.lease != first.lease


async def test_a_delivered_entry_is_deleted(users: Store, outbox: Outbox) -> None:
    await add_people(users, "alice", "bob")
    [alice] = await lease(outbox, limit=1)
    await outbox.delivered(alice)

    assert names(await outbox.entries()) == ["bob"]
    assert names(await lease(outbox, at=LONG_AFTER)) == ["bob"]
    assert await users.find(alice.event.user_id)


async def test_a_rescheduled_entry_is_leased_when_it_is_due(users: Store, outbox: Outbox) -> None:
    await add_people(users, "alice")
    [entry] = await lease(outbox)
    due_at = NOW + 5 * MINUTE
    await outbox.reschedule(entry, due_at=due_at, reason="ConnectionError: größer")

    [waiting] = await outbox.entries()
    assert (waiting.attempts, waiting.due_at, waiting.reason) == (1, due_at, "ConnectionError: größer")
    assert waiting.lease is None
    assert await lease(outbox, at=due_at - timedelta(microseconds=1)) == []
    [again] = await lease(outbox, at=due_at)
    assert (again.id, again.attempts, again.reason) == (entry.id, 2, "ConnectionError: größer")


async def test_a_dead_lettered_entry_stays_and_is_not_leased(users: Store, outbox: Outbox) -> None:
    await add_people(users, "alice")
    [entry] = await lease(outbox)
    await outbox.dead_letter(entry, reason="no such mailbox")

    [kept] = await outbox.entries()
    assert (kept.event, kept.attempts) == (entry.event, 1)
    assert (kept.due_at, kept.reason, kept.lease) == (None, "no such mailbox", None)
    assert await lease(outbox, at=NOW + timedelta(days=1000)) == []
    assert await outbox.next_due() is None


@pytest.mark.parametrize("answer", RESULTS)
async def test_a_result_after_another_worker_has_the_lease_changes_nothing(views: Views, answer: Result) -> None:
    await add_people(views[0], "alice")
    [late] = await lease(views[0].outbox)
    [held] = await lease(views[1].outbox, at=NOW + MINUTE)
    await answer(views[0].outbox, late)

    assert await views[0].outbox.entries() == [held]


@pytest.mark.parametrize("answer", RESULTS)
@pytest.mark.parametrize("first", RESULTS)
async def test_a_second_result_changes_nothing(users: Store, outbox: Outbox, first: Result, answer: Result) -> None:
    await add_people(users, "alice")
    [entry] = await lease(outbox)
    await first(outbox, entry)
    after_the_first = await outbox.entries()
    await answer(outbox, entry)

    assert await outbox.entries() == after_the_first


async def test_next_due_is_the_first_due_time_or_end_of_a_lease(users: Store, outbox: Outbox) -> None:
    await users.add(person("later@example.com", at=NOW + 3 * MINUTE))
    await users.add(person("soon@example.com", at=NOW))
    assert await outbox.next_due() == NOW
    [soon] = await lease(outbox, until=NOW + 2 * MINUTE)
    assert await outbox.next_due() == NOW + 2 * MINUTE
    await outbox.reschedule(soon, due_at=NOW + 5 * MINUTE, reason="-")
    assert await outbox.next_due() == NOW + 3 * MINUTE


async def test_an_id_is_never_used_again(users: Store, outbox: Outbox) -> None:
    await add_people(users, "alice")
    [alice] = await lease(outbox)
    await outbox.delivered(alice)
    await add_people(users, "bob")
    [bob] = await lease(outbox)
    assert bob.id != alice.id


async def test_a_retry_of_a_dead_lettered_entry_makes_it_due_without_attempts(users: Store, outbox: Outbox) -> None:
    await add_people(users, "alice")
    [entry] = await lease(outbox)
    await outbox.dead_letter(entry, reason="no such mailbox")

    assert await outbox.retry(entry.id, now=LONG_AFTER)
    assert await outbox.next_due() == LONG_AFTER
    [again] = await lease(outbox, at=LONG_AFTER)
    assert (again.id, again.attempts, again.reason) == (entry.id, 1, "no such mailbox")


async def test_a_retry_of_a_leased_entry_changes_nothing(users: Store, outbox: Outbox) -> None:
    await add_people(users, "alice")
    [held] = await lease(outbox)

    assert not await outbox.retry(held.id, now=NOW + MINUTE / 2)
    assert await outbox.entries() == [held]
    # The worker has crashed.
    assert await outbox.retry(held.id, now=NOW + MINUTE)
    await outbox.delivered(held)
    [waiting] = await outbox.entries()
    assert (waiting.attempts, waiting.due_at, waiting.lease) == (0, NOW + MINUTE, None)


async def test_a_retry_of_an_unknown_entry_returns_false(users: Store, outbox: Outbox) -> None:
    await add_people(users, "alice")
    [alice] = await lease(outbox)
    assert not await outbox.retry(alice.id + 1, now=NOW)
    await outbox.delivered(alice)
    assert not await outbox.retry(alice.id, now=NOW)


async def test_the_state_counts_pending_entries_and_has_the_time_of_the_oldest(users: Store, outbox: Outbox) -> None:
    assert await outbox.state() == OutboxState(pending=0, dead_lettered=0, oldest=None)

    for minutes, name in enumerate(["alice", "bob", "carol"]):
        await users.add(person(f"{name}@example.com", at=NOW + minutes * MINUTE))
    assert await outbox.state() == OutboxState(pending=3, dead_lettered=0, oldest=NOW)

    alice, bob, carol = await lease(outbox, at=LONG_AFTER, until=LONG_AFTER + MINUTE)
    await outbox.dead_letter(alice, reason="no such mailbox")
    await outbox.reschedule(bob, due_at=LONG_AFTER + MINUTE, reason="come again")
    assert await outbox.state() == OutboxState(pending=2, dead_lettered=1, oldest=NOW + MINUTE)

    await outbox.delivered(carol)
    assert await outbox.state() == OutboxState(pending=1, dead_lettered=1, oldest=NOW + MINUTE)


# --- limits on mails to one mailbox and one domain -------------------------------------------------------------------


async def due_times(outbox: Outbox) -> list[timedelta]:
    """How long after ``NOW`` each entry is due, in order of registration."""
    return [entry.due_at - NOW for entry in await outbox.entries() if entry.due_at is not None]


async def test_mails_to_one_mailbox_under_many_tags_are_spread_over_days(views: Views) -> None:
    # Through two processes in turn: the limit is in the store.
    for number in range(12):
        await views[number % 2].add(person(f"{'Victim' if number % 3 else 'v.ictim'}+{number}@example.com"))
    await views[0].add(person("other+1@example.com"))
    await views[0].add(person("victim@example.org"))

    gap = MAILBOX.gap
    waits = [timedelta(0)] * MAILBOX.burst + [n * gap for n in range(1, 13 - MAILBOX.burst)]
    assert await due_times(views[1].outbox) == [*waits, timedelta(0), timedelta(0)]
    in_a_day = [sum(timedelta(0) <= later - first <= timedelta(days=1) for later in waits) for first in waits]
    assert max(in_a_day) == 10
    held = (await views[0].outbox.entries())[MAILBOX.burst]
    assert (held.attempts, held.reason, held.lease, held.is_rate_limited) == (0, RATE_LIMITED, None, True)


async def test_a_rate_limited_mail_is_sent_in_order_with_all_its_attempts(views: Views) -> None:
    for number in range(MAILBOX.burst + 2):
        await views[0].add(person(f"victim+{number}@example.com"))

    # A limit can delay a mail by any time, so the time is not mistaken for that of a wrong clock.
    assert len(await views[0].outbox.lease(now=NOW, until=NOW + MINUTE, limit=100, latest=NOW)) == MAILBOX.burst
    for entry in await views[1].outbox.lease(now=NOW + MINUTE, until=NOW + 2 * MINUTE, limit=100):
        await views[1].outbox.delivered(entry)
    assert await views[1].outbox.next_due() == NOW + MAILBOX.gap
    assert await lease(views[1].outbox, at=NOW + MAILBOX.gap - timedelta(microseconds=1)) == []
    [first] = await lease(views[1].outbox, at=NOW + MAILBOX.gap)
    assert (first.event.email, first.attempts, first.is_rate_limited) == (
        f"victim+{MAILBOX.burst}@example.com",
        1,
        False,
    )
    await views[0].outbox.reschedule(first, due_at=NOW + timedelta(days=3650), reason="busy")
    # After the first attempt, only a wrong clock can delay it.
    [again] = await views[0].outbox.lease(now=NOW + MAILBOX.gap, until=LONG_AFTER, limit=9, latest=LONG_AFTER)
    assert (again.id, again.attempts) == (first.id, 2)


async def test_a_mail_limit_expires(users: Store, outbox: Outbox) -> None:
    for number in range(MAILBOX.burst):
        await users.add(person(f"victim+{number}@example.com"))
    later = NOW + 2 * MAILBOX.gap
    for number in range(MAILBOX.burst):
        await users.add(person(f"victim+later{number}@example.com", at=later))

    waits = [due - (later - NOW) for due in (await due_times(outbox))[MAILBOX.burst :]]
    assert waits == [timedelta(0), timedelta(0), *(n * MAILBOX.gap for n in range(1, MAILBOX.burst - 1))]


async def test_mails_to_one_domain_are_spread(monkeypatch: pytest.MonkeyPatch, users: Store, outbox: Outbox) -> None:
    monkeypatch.setattr("usersvc.domain.mail_limits.DOMAIN", MailLimit(burst=3, gap=MINUTE))
    await add_people(users, *"abcde")
    await users.add(person("f@EXAMPLE.com"))
    await users.add(person("g@sub.example.com"))

    assert await due_times(outbox) == [n * MINUTE for n in (0, 0, 0, 1, 2, 3, 0)]


async def test_the_limits_apply_to_users_added_in_one_batch(users: Store, outbox: Outbox) -> None:
    await users.add(person("victim+0@example.com"))
    people = [person(f"victim+{number}@example.com") for number in range(MAILBOX.burst + 2)]
    assert await users.add_all(people) == [False, *[True] * (MAILBOX.burst + 1)]

    assert await due_times(outbox) == [timedelta(0)] * MAILBOX.burst + [MAILBOX.gap, 2 * MAILBOX.gap]


async def test_a_refused_user_reserves_no_mail(users: Store, outbox: Outbox) -> None:
    for _ in range(2 * MAILBOX.burst):
        with suppress(EmailAlreadyRegistered):
            await users.add(person("victim@example.com"))
    await users.add(person("victim+1@example.com"))

    assert await due_times(outbox) == [timedelta(0), timedelta(0)]


async def test_a_wrong_clock_does_not_delay_mails_for_long(views: Views) -> None:
    await views[0].add(person("victim+0@example.com"))
    await views[1].add(person("victim+1@example.com", at=NOW + timedelta(days=3650)))
    for number in range(2, MAILBOX.burst + 2):
        await views[0].add(person(f"victim+{number}@example.com"))

    due = await due_times(views[0].outbox)
    assert [*due[:1], *due[2:]] == [*[timedelta(0)] * MAILBOX.burst, MAILBOX.gap]
    # The mail that the wrong clock delayed is sent too.
    assert "victim+1" in names(await views[0].outbox.lease(now=NOW, until=LONG_AFTER, limit=9, latest=LONG_AFTER))


async def test_a_rate_limited_entry_does_not_count_as_the_oldest(users: Store, outbox: Outbox) -> None:
    for number in range(MAILBOX.burst + 2):
        await users.add(person(f"victim+{number}@example.com"))
    for entry in await lease(outbox, limit=100):
        await outbox.delivered(entry)

    assert await outbox.state() == OutboxState(pending=2, dead_lettered=0, oldest=None)
    assert await outbox.retry((await outbox.entries())[0].id, now=NOW)
    assert len(await lease(outbox)) == 1


async def test_an_entry_keeps_its_request_context(users: Store, outbox: Outbox) -> None:
    await users.add(person("alice@example.com"))
    before = request_context.set(RequestContext("one", "0af7651916cd43dd8448eb211c80319c"))
    await users.add(person("bob@example.com"))
    request_context.set(RequestContext("two"))
    await users.add(person("carol@example.com"))
    request_context.set(RequestContext("three", "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"))
    await users.add(person("dave@example.com"))
    request_context.reset(before)

    expected = [
        None,
        RequestContext("one", "0af7651916cd43dd8448eb211c80319c"),
        RequestContext("two"),
        RequestContext("three", "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"),
    ]
    assert [entry.context for entry in await lease(outbox)] == expected
    assert [entry.context for entry in await outbox.entries()] == expected


async def test_a_batch_stores_only_the_events_of_its_users(users: Store, outbox: Outbox) -> None:
    await users.add(person("alice@example.com"))
    before = request_context.set(RequestContext("one"))
    accepted, refused = person("bob@example.com"), person("ALICE@example.com")
    stored = await users.add_all([replace(person("carol@example.com"), events=()), accepted, refused])
    request_context.reset(before)

    assert stored == [True, True, False]
    assert names(await outbox.entries()) == ["alice", "bob"]
    _, entry = await outbox.entries()
    assert (entry.event, entry.due_at, entry.context) == (accepted.events[0], NOW, RequestContext("one"))


async def test_mails_to_a_removed_user_are_deleted(users: Store, outbox: Outbox) -> None:
    people = [person(f"{name}@example.com") for name in ("alice", "bob", "carol")]
    for each in people:
        await users.add(each)
    [alice] = await lease(outbox, limit=1)
    await outbox.dead_letter(alice, reason="no such mailbox")
    await users.remove(people[0].id)
    await users.remove(people[2].id)

    assert names(await outbox.entries()) == ["bob"]
    assert names(await lease(outbox, at=LONG_AFTER)) == ["bob"]
    assert await outbox.state() == OutboxState(pending=1, dead_lettered=0, oldest=NOW)
