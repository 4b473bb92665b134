import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fake_time import START, in_fake_time, now
from tests.fakes import Mailbag, QuickHasher
from usersvc.adapters.memory import InMemoryOutbox, InMemoryUsers
from usersvc.application.errors import StorageUnavailable, Undeliverable
from usersvc.application.mail_delivery import (
    AT_ONCE,
    DELIVERY_TIMEOUT,
    FIRST_WAIT,
    GIVE_UP_AFTER,
    LAST_ATTEMPT,
    LEASE,
    LONGEST_REASON,
    LONGEST_SLEEP,
    LONGEST_WAIT,
    PLACE_KEPT,
    STOP_TIMEOUT,
    MailDelivery,
    wait_before,
)
from usersvc.application.outbox_entries import LAST, OutboxEntry
from usersvc.application.ports import Notifier, Outbox
from usersvc.application.registration import UserRegistrationService
from usersvc.domain.events import UserRegistered
from usersvc.domain.user import PasswordHash, User

SECOND = timedelta(seconds=1)


class Postman:
    """A ``Notifier`` that notes who was told when, and does with each attempt what a test says."""

    def __init__(self, do: Callable[[UserRegistered], Awaitable[None]] | None = None) -> None:
        self._do = do
        self.attempts: list[tuple[str, datetime]] = []
        self.told: list[tuple[str, datetime]] = []

    async def welcome(self, event: UserRegistered) -> None:
        name = name_of(event)
        self.attempts.append((name, now()))
        if self._do is not None:
            await self._do(event)
        self.told.append((name, now()))


def name_of(event: UserRegistered) -> str:
    return event.email.partition("@")[0]


async def hang(_: UserRegistered) -> None:
    await asyncio.Event().wait()


async def no_way(event: UserRegistered) -> None:
    raise ConnectionError(f"no way to {event.email}")


async def add(outbox: InMemoryOutbox, name: str = "alice") -> None:
    registration = User.register(email=f"{name}@example.com", password="correct horse battery", age=30)
    for event in registration.complete(PasswordHash("$hash"), at=now()).events:
        outbox.put(event)


def dispatcher(outbox: Outbox, notifier: Notifier) -> MailDelivery:
    return MailDelivery(outbox, notifier, clock=now, jitter=lambda: 0)


async def passed(duration: timedelta) -> None:
    await asyncio.sleep(duration.total_seconds())


@in_fake_time
async def test_who_registers_is_told_at_once_and_once() -> None:
    users, mailbag = InMemoryUsers(), Mailbag()
    told = dispatcher(users.outbox, mailbag)
    service = UserRegistrationService(users, QuickHasher(), clock=now, on_registered=told.wake)
    async with told:
        await passed(7 * SECOND)
        user = (await service.register(email="alice@example.com", password="correct horse battery", age=30)).user
        await passed(timedelta(microseconds=1))
        assert [str(event.user_id) for event in mailbag.welcomes] == [user["id"]]
        await passed(timedelta(days=1))

    assert len(mailbag.welcomes) == 1
    assert await users.outbox.entries() == []


@in_fake_time
async def test_what_waits_from_before_the_start_is_delivered() -> None:
    outbox, postman = InMemoryOutbox(), Postman()
    for n in range(3 * AT_ONCE):
        await add(outbox, f"user{n}")
    async with dispatcher(outbox, postman):
        await passed(SECOND)

    assert postman.told == [(f"user{n}", START) for n in range(3 * AT_ONCE)]


@in_fake_time
async def test_what_another_process_has_put_there_is_found_without_a_wake() -> None:
    outbox, postman = InMemoryOutbox(), Postman()
    async with dispatcher(outbox, postman):
        await passed(SECOND)
        await add(outbox)
        await passed(LONGEST_SLEEP)
    [(_, at)] = postman.told
    assert at <= START + LONGEST_SLEEP


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_waits_are_from_seconds_to_an_hour(attempt: int, jitter: float) -> None:
    assert timedelta(seconds=2) <= wait_before(attempt, jitter) <= timedelta(hours=1)
    assert wait_before(attempt, 0) / 2 <= wait_before(attempt, jitter) <= wait_before(attempt, 0)


def test_waits_grow_twofold_up_to_the_longest() -> None:
    waits = [wait_before(attempt, 0) for attempt in range(1, 13)]
    assert waits[0] == FIRST_WAIT
    assert waits[-1] == LONGEST_WAIT
    assert all(after == min(2 * before, LONGEST_WAIT) for before, after in pairwise(waits))


@pytest.mark.parametrize(("jitter", "at_least"), [(0, timedelta(hours=50)), (1, timedelta(hours=25))])
def test_the_waits_before_the_last_attempt_add_up_to_more_than_a_day(jitter: float, at_least: timedelta) -> None:
    total = sum((wait_before(attempt, jitter) for attempt in range(1, LAST_ATTEMPT)), timedelta())
    assert at_least <= total < at_least + 2 * LONGEST_WAIT


@in_fake_time
async def test_the_mail_arrives_although_the_server_was_down_for_hours() -> None:
    async def down_for_five_hours(event: UserRegistered) -> None:
        if now() < START + timedelta(hours=5):
            await no_way(event)

    outbox, postman = InMemoryOutbox(), Postman(down_for_five_hours)
    async with dispatcher(outbox, postman):
        await add(outbox)
        await passed(timedelta(hours=8))

    [(_, at)] = postman.told
    assert START + timedelta(hours=5) <= at <= START + timedelta(hours=6)
    gaps = [after - before for (_, before), (_, after) in pairwise(postman.attempts)]
    assert gaps[:4] == [timedelta(seconds=5), timedelta(seconds=10), timedelta(seconds=20), timedelta(seconds=40)]
    assert max(gaps) == LONGEST_WAIT
    assert await outbox.entries() == []


@in_fake_time
async def test_after_more_than_a_day_of_attempts_an_entry_is_set_aside_with_the_reason() -> None:
    outbox, postman = InMemoryOutbox(), Postman(no_way)
    async with dispatcher(outbox, postman):
        await add(outbox)
        await passed(timedelta(days=4))

    [entry] = await outbox.entries()
    assert (entry.due_at, entry.reason) == (None, "ConnectionError: no way to alice@example.com")
    assert len(postman.attempts) == entry.attempts == LAST_ATTEMPT
    assert START + GIVE_UP_AFTER <= postman.attempts[-1][1] <= START + timedelta(days=3)


@in_fake_time
async def test_a_service_that_was_off_for_days_does_not_give_up_at_once() -> None:
    outbox, postman = InMemoryOutbox(), Postman(no_way)
    await add(outbox)
    await passed(timedelta(days=5))
    async with dispatcher(outbox, postman):
        await passed(timedelta(days=1))

    [entry] = await outbox.entries()
    assert entry.due_at is not None


@in_fake_time
async def test_crashes_alone_do_not_use_up_the_attempts() -> None:
    outbox, postman = InMemoryOutbox(), Postman(no_way)
    await add(outbox)
    for _ in range(2 * LAST_ATTEMPT):
        assert await outbox.lease(now=now(), until=now() + SECOND, limit=1)
        await passed(SECOND)
    async with dispatcher(outbox, postman):
        await passed(SECOND)

    [entry] = await outbox.entries()
    assert entry.due_at is not None


@in_fake_time
async def test_what_cannot_be_delivered_is_set_aside_at_once() -> None:
    async def refuse(_: UserRegistered) -> None:
        raise Undeliverable("nobody lives there")

    outbox, postman = InMemoryOutbox(), Postman(refuse)
    async with dispatcher(outbox, postman):
        await add(outbox)
        await passed(timedelta(hours=3))

    [entry] = await outbox.entries()
    assert (entry.due_at, entry.reason, entry.attempts) == (None, "nobody lives there", 1)
    assert len(postman.attempts) == 1


@in_fake_time
async def test_what_was_set_aside_is_tried_anew_on_demand() -> None:
    up = asyncio.Event()

    async def refuse_at_first(_: UserRegistered) -> None:
        if not up.is_set():
            raise Undeliverable("nobody lives there")

    outbox, postman = InMemoryOutbox(), Postman(refuse_at_first)
    async with dispatcher(outbox, postman):
        await add(outbox)
        await passed(SECOND)
        up.set()
        [entry] = await outbox.entries()
        assert await outbox.retry(entry.id, now=now())
        await passed(LONGEST_SLEEP)
    assert len(postman.told) == 1


@in_fake_time
async def test_one_that_fails_never_holds_up_the_others() -> None:
    async def no_way_to_bob(event: UserRegistered) -> None:
        if name_of(event) == "bob":
            await no_way(event)

    outbox, postman = InMemoryOutbox(), Postman(no_way_to_bob)
    async with dispatcher(outbox, postman):
        for name in ("bob", "alice", "carol"):
            await add(outbox, name)
        await passed(LONGEST_SLEEP)
    assert [name for name, _ in postman.told] == ["alice", "carol"]


@in_fake_time
async def test_one_that_hangs_is_broken_off_and_tried_again() -> None:
    async def hang_at_first(event: UserRegistered) -> None:
        if now() < START + SECOND:
            await hang(event)

    outbox, postman = InMemoryOutbox(), Postman(hang_at_first)
    await add(outbox)
    async with dispatcher(outbox, postman):
        await passed(2 * DELIVERY_TIMEOUT)
    assert postman.told == [("alice", START + DELIVERY_TIMEOUT + FIRST_WAIT)]


@pytest.mark.parametrize("hanging", [AT_ONCE - 1, AT_ONCE, 3 * AT_ONCE, 6 * AT_ONCE])
def test_many_that_hang_hold_up_the_others_no_longer_than_one_attempt_lasts(hanging: int) -> None:
    @in_fake_time
    async def run() -> None:
        async def hang_for_all_but_alice(event: UserRegistered) -> None:
            if name_of(event) != "alice":
                await hang(event)

        outbox, postman = InMemoryOutbox(), Postman(hang_for_all_but_alice)
        for n in range(hanging):
            await add(outbox, f"user{n}")
        await add(outbox)
        async with dispatcher(outbox, postman):
            await passed(DELIVERY_TIMEOUT)
        assert [name for name, _ in postman.told] == ["alice"]
        assert postman.told[0][1] <= START + hanging // AT_ONCE * PLACE_KEPT

    run()


@in_fake_time
async def test_no_more_than_so_many_are_ever_in_hand() -> None:
    in_hand = most = 0

    async def count(event: UserRegistered) -> None:
        nonlocal in_hand, most
        in_hand += 1
        most = max(most, in_hand)
        try:
            await hang(event)
        finally:
            in_hand -= 1

    outbox, postman = InMemoryOutbox(), Postman(count)
    for n in range(200):
        await add(outbox, f"user{n}")
    async with dispatcher(outbox, postman):
        await passed(timedelta(minutes=30))
    assert most == AT_ONCE * DELIVERY_TIMEOUT / PLACE_KEPT == 48


class FlakyOutbox(InMemoryOutbox):
    """An outbox whose store cannot answer while a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.error: Exception | None = None

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error

    async def lease(self, *, now: datetime, until: datetime, limit: int, latest: datetime = LAST) -> list[OutboxEntry]:
        self._fail()
        return await super().lease(now=now, until=until, limit=limit, latest=latest)

    async def delivered(self, entry: OutboxEntry) -> None:
        self._fail()
        await super().delivered(entry)

    async def next_due(self) -> datetime | None:
        self._fail()
        return await super().next_due()


@pytest.mark.parametrize("error", [StorageUnavailable("disk full"), RuntimeError("a bug")])
def test_a_store_that_fails_for_a_while_ends_nothing(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    @in_fake_time
    async def run() -> None:
        outbox, postman = FlakyOutbox(), Postman()
        async with dispatcher(outbox, postman) as told:
            outbox.error = error
            await add(outbox)
            told.wake()
            await passed(timedelta(minutes=10))
            assert postman.attempts == []
            outbox.error = None
            await passed(FIRST_WAIT)
            assert len(postman.told) == 1
        # It is tried every few seconds, not as fast as can be.
        assert 10 * 60 / 5 <= len(caplog.records) <= 10 * 60 / 5 + 3

    run()


@in_fake_time
async def test_a_mail_that_could_not_be_ticked_off_at_once_is_not_sent_again() -> None:
    outbox = FlakyOutbox()

    async def then_the_disk_is_full(_: UserRegistered) -> None:
        outbox.error = StorageUnavailable("disk full")

    postman = Postman(then_the_disk_is_full)
    await add(outbox)
    async with dispatcher(outbox, postman):
        await passed(timedelta(minutes=1))
        outbox.error = None
        await passed(timedelta(minutes=10))

    assert len(postman.attempts) == 1
    assert await outbox.entries() == []


@in_fake_time
async def test_a_mail_that_could_not_be_ticked_off_while_the_lease_lasts_is_sent_again() -> None:
    outbox = FlakyOutbox()

    async def the_disk_is_full_for_minutes(_: UserRegistered) -> None:
        outbox.error = StorageUnavailable("disk full") if now() < START + timedelta(minutes=1) else None

    postman = Postman(the_disk_is_full_for_minutes)
    await add(outbox)
    async with dispatcher(outbox, postman):
        await passed(timedelta(minutes=5))
        outbox.error = None
        await passed(timedelta(minutes=5))

    assert len(postman.attempts) == 2
    assert await outbox.entries() == []


@in_fake_time
async def test_a_bug_in_an_answer_ends_nothing_and_is_told_without_an_address(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outbox = FlakyOutbox()

    async def then_there_is_a_bug(event: UserRegistered) -> None:
        outbox.error = RuntimeError(f"about {event.email}") if now() < START + SECOND else None

    postman = Postman(then_there_is_a_bug)
    await add(outbox)
    async with dispatcher(outbox, postman):
        await passed(SECOND)
        outbox.error = None
        await passed(2 * LEASE)

    assert len(postman.attempts) == 2
    assert await outbox.entries() == []
    assert "outbox entry 1 could not be worked on: RuntimeError" in caplog.text


@in_fake_time
async def test_what_a_crashed_holder_had_is_sent_when_its_lease_ends() -> None:
    outbox, postman = InMemoryOutbox(), Postman()
    await add(outbox)
    [_] = await outbox.lease(now=now(), until=now() + LEASE, limit=1)
    async with dispatcher(outbox, postman):
        await passed(LEASE - SECOND)
        assert postman.attempts == []
        await passed(2 * SECOND)
    assert postman.told == [("alice", START + LEASE)]


@in_fake_time
async def test_two_dispatchers_send_nothing_twice() -> None:
    async def take_a_moment(_: UserRegistered) -> None:
        await passed(0.3 * SECOND)

    outbox, postman = InMemoryOutbox(), Postman(take_a_moment)
    async with dispatcher(outbox, postman) as one, dispatcher(outbox, postman) as other:
        for n in range(100):
            await add(outbox, f"user{n}")
            one.wake()
            other.wake()
        await passed(timedelta(hours=1))

    assert Counter(name for name, _ in postman.attempts) == {f"user{n}": 1 for n in range(100)}


@in_fake_time
async def test_a_stop_lets_those_in_hand_finish_and_takes_nothing_new() -> None:
    async def take_long(_: UserRegistered) -> None:
        await passed(STOP_TIMEOUT - SECOND)

    outbox, postman = InMemoryOutbox(), Postman(take_long)
    for n in range(2 * AT_ONCE):
        await add(outbox, f"user{n}")
    async with dispatcher(outbox, postman):
        await passed(0.5 * SECOND)

    assert len(postman.told) == len(postman.attempts) == AT_ONCE
    waiting = await outbox.entries()
    assert [(entry.attempts, entry.lease) for entry in waiting] == [(0, None)] * AT_ONCE


@in_fake_time
async def test_a_stop_breaks_off_what_takes_too_long_and_leaves_it_to_the_next_start() -> None:
    outbox, postman = InMemoryOutbox(), Postman(hang)
    await add(outbox)
    async with dispatcher(outbox, postman):
        await passed(SECOND)
    assert now() == START + SECOND + STOP_TIMEOUT
    assert asyncio.all_tasks() == {asyncio.current_task()}

    other = Postman()
    async with dispatcher(outbox, other):
        await passed(LEASE)
    assert len(other.told) == 1


@in_fake_time
async def test_a_stop_insists_when_a_cancellation_is_swallowed() -> None:
    async def swallow_one(event: UserRegistered) -> None:
        with suppress(asyncio.CancelledError):
            await hang(event)
        await hang(event)

    outbox = InMemoryOutbox()
    await add(outbox)
    async with dispatcher(outbox, Postman(swallow_one)):
        await passed(SECOND)
    assert now() <= START + 2 * SECOND + STOP_TIMEOUT


@in_fake_time
async def test_a_stop_does_not_wait_for_a_store_that_hangs() -> None:
    class HangingOutbox(InMemoryOutbox):
        async def lease(self, **_: object) -> list[OutboxEntry]:
            await asyncio.Event().wait()
            return []

    async with dispatcher(HangingOutbox(), Postman()):
        await passed(SECOND)
    assert now() == START + SECOND + STOP_TIMEOUT


@in_fake_time
async def test_a_stopped_dispatcher_can_start_again() -> None:
    outbox, postman = InMemoryOutbox(), Postman()
    told = dispatcher(outbox, postman)
    async with told:
        await passed(SECOND)
    await add(outbox)
    await passed(timedelta(hours=1))
    assert postman.attempts == []
    async with told:
        await passed(SECOND)
    assert len(postman.told) == 1


@in_fake_time
async def test_log_lines_name_the_user_and_never_the_address(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def fail_in_every_way(event: UserRegistered) -> None:
        if name_of(event) == "secret1":
            raise Undeliverable(f"nobody lives at {event.email}")
        if name_of(event) == "secret2":
            await hang(event)
        await no_way(event)

    outbox, postman = InMemoryOutbox(), Postman(fail_in_every_way)
    for n in range(3):
        await add(outbox, f"secret{n}")
    ids = [str(entry.event.user_id) for entry in await outbox.entries()]
    async with dispatcher(outbox, postman):
        await passed(timedelta(days=4))

    assert all(user_id in caplog.text for user_id in ids)
    assert f"attempt 1 to welcome user {ids[0]} failed (ConnectionError); next in 5 s" in caplog.text
    assert f"user {ids[1]} will not be welcomed: outbox entry 2 is dead-lettered after attempt 1" in caplog.text
    assert "secret" not in caplog.text
    assert "example" not in caplog.text


@pytest.mark.parametrize("kind", [ConnectionError, Undeliverable])
def test_a_reason_is_one_line_that_can_be_stored_and_printed(kind: type[Exception]) -> None:
    @in_fake_time
    async def run() -> None:
        async def answer_in_a_nasty_way(_: UserRegistered) -> None:
            raise kind("550 no\r\nsuch\tuser \x1b[31m\udcff\u202e é " + "x" * 10_000)

        outbox = InMemoryOutbox()
        await add(outbox)
        async with dispatcher(outbox, Postman(answer_in_a_nasty_way)):
            await passed(SECOND)
        [entry] = await outbox.entries()
        assert entry.reason is not None
        assert entry.reason.isprintable()
        assert "550 no  such user  [31m   é xx" in entry.reason
        assert len(entry.reason) <= LONGEST_REASON

    run()
