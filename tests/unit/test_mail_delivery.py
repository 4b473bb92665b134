"""Mail delivery in fake time: retries, leases, limits and stops."""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from itertools import pairwise
from uuid import uuid4

import pytest

from tests.fake_time import START, in_fake_time, now
from usersvc.adapters.memory import InMemoryOutbox
from usersvc.adapters.telemetry.instrumented import observed
from usersvc.application.errors import StorageUnavailable, Undeliverable
from usersvc.application.mail_delivery import (
    CONCURRENCY,
    DELIVERY_TIMEOUT,
    FIRST_DELAY,
    LEASE,
    MAX_AGE,
    MAX_ATTEMPTS,
    MAX_DELAY,
    MAX_REASON_LENGTH,
    POLL_INTERVAL,
    SLOW_AFTER,
    STOP_TIMEOUT,
    MailDelivery,
    retry_delay,
)
from usersvc.application.outbox_entries import OutboxEntry
from usersvc.application.ports import Outbox
from usersvc.domain.events import UserRegistered

SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


class FakeNotifier:
    """A ``Notifier`` that records attempts and successes with their times.

    ``do`` is called for each attempt: to all users or those in ``to``, always or for a time after ``START``.
    """

    def __init__(
        self,
        do: Callable[[UserRegistered], Awaitable[None]] | None = None,
        *,
        to: Iterable[str] | None = None,
        duration: timedelta = timedelta.max,
    ) -> None:
        self._do, self._to, self._duration = do, to, duration
        self.attempts: list[tuple[str, datetime]] = []
        self.sent: list[tuple[str, datetime]] = []

    async def welcome(self, event: UserRegistered) -> None:
        name = name_of(event)
        self.attempts.append((name, now()))
        if self._do is not None and (self._to is None or name in self._to) and now() - START < self._duration:
            await self._do(event)
        self.sent.append((name, now()))


class FlakyStorage:
    """Calls of ``outbox`` raise ``error`` while it is set."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.entries = InMemoryOutbox()
        self.outbox: Outbox = observed(self.entries, self._call)

    @contextmanager
    def _call(self, _: str) -> Iterator[None]:
        if self.error is not None:
            raise self.error
        yield


def name_of(event: UserRegistered) -> str:
    return event.email.partition("@")[0]


async def hang(_: UserRegistered) -> None:
    await asyncio.Event().wait()


async def fail(event: UserRegistered) -> None:
    raise ConnectionError(f"cannot reach {event.email}")


async def refuse(_: UserRegistered) -> None:
    raise Undeliverable("no such mailbox")


def add(outbox: InMemoryOutbox, name: str) -> None:
    outbox.put(UserRegistered(uuid4(), f"{name}@example.com", now()))


def outbox_with(names: Iterable[str]) -> InMemoryOutbox:
    outbox = InMemoryOutbox()
    for name in names:
        add(outbox, name)
    return outbox


def users(count: int) -> list[str]:
    return [f"user{n}" for n in range(count)]


async def deliver(outbox: Outbox, notifier: FakeNotifier, duration: timedelta) -> None:
    async with MailDelivery(outbox, notifier, clock=now):
        await passed(duration)


async def passed(duration: timedelta) -> None:
    await asyncio.sleep(duration.total_seconds())


@pytest.fixture(autouse=True)
def _without_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("usersvc.application.mail_delivery.random", lambda: 0.0)


@in_fake_time
async def test_pending_entries_are_delivered_at_the_start() -> None:
    outbox, notifier = outbox_with(users(3 * CONCURRENCY)), FakeNotifier()
    await deliver(outbox, notifier, SECOND)
    assert notifier.sent == [(name, START) for name in users(3 * CONCURRENCY)]


@pytest.mark.parametrize("wake", [True, False])
@in_fake_time
async def test_a_new_entry_is_delivered_once_either_immediately_or_by_polling(wake: bool) -> None:
    outbox, notifier = InMemoryOutbox(), FakeNotifier()
    async with MailDelivery(outbox, notifier, clock=now) as delivery:
        await passed(7 * SECOND)
        add(outbox, "alice")
        if wake:
            delivery.wake()
        await passed(DAY)
    assert notifier.sent == [("alice", START + (7 * SECOND if wake else POLL_INTERVAL))]
    assert await outbox.entries() == []


@pytest.mark.parametrize(
    ("jitter", "shortest", "longest", "total"),
    [(0, 5 * SECOND, HOUR, 50 * HOUR), (1, 2.5 * SECOND, HOUR / 2, 25 * HOUR)],
)
def test_delays_are_from_seconds_to_an_hour_and_add_up_to_more_than_a_day(
    jitter: float, shortest: timedelta, longest: timedelta, total: timedelta
) -> None:
    assert [retry_delay(attempt, jitter) for attempt in (1, 2, 20, 10**6)] == [shortest, 2 * shortest, longest, longest]
    assert total <= sum((retry_delay(attempt, jitter) for attempt in range(1, MAX_ATTEMPTS)), timedelta()) < 1.1 * total


@in_fake_time
async def test_a_mail_is_retried_with_growing_delays_while_the_server_is_down() -> None:
    outbox, notifier = outbox_with(["alice"]), FakeNotifier(fail, duration=5 * HOUR)
    await deliver(outbox, notifier, 8 * HOUR)

    assert len(notifier.sent) == 1
    gaps = [after - before for (_, before), (_, after) in pairwise(notifier.attempts)]
    assert (gaps[0], gaps[-1]) == (FIRST_DELAY, MAX_DELAY)
    assert all(after == min(2 * before, MAX_DELAY) for before, after in pairwise(gaps))
    assert await outbox.entries() == []


@in_fake_time
async def test_an_entry_is_dead_lettered_with_the_reason_after_the_last_attempt() -> None:
    outbox, notifier = outbox_with(["alice"]), FakeNotifier(fail)
    await deliver(outbox, notifier, 4 * DAY)

    [entry] = await outbox.entries()
    assert (entry.due_at, entry.reason) == (None, "ConnectionError: cannot reach alice@example.com")
    assert len(notifier.attempts) == entry.attempts == MAX_ATTEMPTS
    assert START + MAX_AGE <= notifier.attempts[-1][1] <= START + 3 * DAY


@pytest.mark.parametrize(("attempts", "age"), [(0, 5 * DAY), (2 * MAX_ATTEMPTS, 2 * MAX_ATTEMPTS * SECOND)])
@in_fake_time
async def test_age_or_attempts_alone_do_not_dead_letter_an_entry(attempts: int, age: timedelta) -> None:
    outbox = outbox_with(["alice"])
    for _ in range(attempts):
        assert await outbox.lease(now=now(), until=now() + SECOND, limit=1)
        await passed(SECOND)
    await passed(START + age - now())
    await deliver(outbox, FakeNotifier(fail), SECOND)

    [entry] = await outbox.entries()
    assert entry.due_at is not None


@in_fake_time
async def test_an_undeliverable_mail_is_dead_lettered_immediately_and_can_be_retried() -> None:
    outbox, notifier = outbox_with(["alice"]), FakeNotifier(refuse, duration=3 * HOUR)
    await deliver(outbox, notifier, 3 * HOUR)
    [entry] = await outbox.entries()
    assert (entry.due_at, entry.reason, entry.attempts) == (None, "no such mailbox", 1)
    assert len(notifier.attempts) == 1

    assert await outbox.retry(entry.id, now=now())
    await deliver(outbox, notifier, SECOND)
    assert len(notifier.sent) == 1


@in_fake_time
async def test_a_failing_delivery_does_not_delay_others() -> None:
    notifier = FakeNotifier(fail, to=["bob"])
    await deliver(outbox_with(["bob", "alice", "carol"]), notifier, POLL_INTERVAL)
    assert notifier.sent == [("alice", START), ("carol", START)]


@in_fake_time
async def test_a_hanging_delivery_times_out_and_is_retried() -> None:
    notifier = FakeNotifier(hang, duration=SECOND)
    await deliver(outbox_with(["alice"]), notifier, 2 * DELIVERY_TIMEOUT)
    assert notifier.sent == [("alice", START + DELIVERY_TIMEOUT + FIRST_DELAY)]


@pytest.mark.parametrize("hanging", [CONCURRENCY - 1, CONCURRENCY, 6 * CONCURRENCY])
@in_fake_time
async def test_hanging_deliveries_delay_others_by_less_than_the_timeout(hanging: int) -> None:
    notifier = FakeNotifier(hang, to=users(hanging))
    await deliver(outbox_with([*users(hanging), "alice"]), notifier, DELIVERY_TIMEOUT)
    [(name, at)] = notifier.sent
    assert name == "alice"
    assert at <= START + hanging // CONCURRENCY * SLOW_AFTER


@in_fake_time
async def test_the_number_of_concurrent_deliveries_is_bounded() -> None:
    running = most = 0

    async def count(event: UserRegistered) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await hang(event)
        finally:
            running -= 1

    await deliver(outbox_with(users(200)), FakeNotifier(count), 30 * MINUTE)
    assert most == CONCURRENCY * DELIVERY_TIMEOUT / SLOW_AFTER == 48


@pytest.mark.parametrize("error", [StorageUnavailable("disk full"), RuntimeError("a bug")])
@in_fake_time
async def test_delivery_continues_after_storage_failures(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    storage, notifier = FlakyStorage(), FakeNotifier()
    async with MailDelivery(storage.outbox, notifier, clock=now) as delivery:
        storage.error = error
        add(storage.entries, "alice")
        delivery.wake()
        await passed(10 * MINUTE)
        assert notifier.attempts == []
        storage.error = None
        await passed(FIRST_DELAY)
        assert len(notifier.sent) == 1
    # It is retried every few seconds, not in a busy loop.
    assert 10 * 60 / 5 <= len(caplog.records) <= 10 * 60 / 5 + 3


@pytest.mark.parametrize(
    ("error", "duration", "attempts"),
    [
        (StorageUnavailable("disk full"), MINUTE, 1),
        (StorageUnavailable("disk full"), 5 * MINUTE, 2),
        (RuntimeError("about alice@example.com"), SECOND, 2),
    ],
    ids=["stored within the lease", "sent again after the lease", "sent again after an unexpected error"],
)
@in_fake_time
async def test_a_result_that_cannot_be_stored(
    error: Exception, duration: timedelta, attempts: int, caplog: pytest.LogCaptureFixture
) -> None:
    storage = FlakyStorage()

    async def break_storage(_: UserRegistered) -> None:
        storage.error = error if now() == START else None

    notifier = FakeNotifier(break_storage)
    add(storage.entries, "alice")
    async with MailDelivery(storage.outbox, notifier, clock=now):
        await passed(duration)
        storage.error = None
        await passed(10 * MINUTE)
    assert len(notifier.attempts) == attempts
    assert await storage.entries.entries() == []
    unexpected = [line for line in caplog.messages if line.startswith("unexpected error with outbox entry")]
    assert unexpected == ["unexpected error with outbox entry 1: RuntimeError"] * isinstance(error, RuntimeError)


@in_fake_time
async def test_two_workers_send_each_mail_once() -> None:
    outbox, notifier = outbox_with(users(100)), FakeNotifier(lambda _: passed(0.3 * SECOND))
    await asyncio.gather(deliver(outbox, notifier, HOUR), deliver(outbox, notifier, HOUR))
    assert Counter(name for name, _ in notifier.attempts) == dict.fromkeys(users(100), 1)


@in_fake_time
async def test_a_stop_waits_for_running_deliveries_and_starts_no_more() -> None:
    outbox = outbox_with(users(2 * CONCURRENCY))
    notifier = FakeNotifier(lambda _: passed(STOP_TIMEOUT - SECOND))
    await deliver(outbox, notifier, 0.5 * SECOND)

    assert len(notifier.sent) == len(notifier.attempts) == CONCURRENCY
    waiting = await outbox.entries()
    assert [(entry.attempts, entry.lease) for entry in waiting] == [(0, None)] * CONCURRENCY


@in_fake_time
async def test_a_stop_cancels_slow_deliveries_which_are_retried_after_the_next_start() -> None:
    outbox, notifier = outbox_with(["alice"]), FakeNotifier()
    await deliver(outbox, FakeNotifier(hang), SECOND)
    assert now() == START + SECOND + STOP_TIMEOUT
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await deliver(outbox, notifier, LEASE)
    assert len(notifier.sent) == 1


@in_fake_time
async def test_a_stop_repeats_a_swallowed_cancellation() -> None:
    async def swallow_one(event: UserRegistered) -> None:
        with suppress(asyncio.CancelledError):
            await hang(event)
        await hang(event)

    await deliver(outbox_with(["alice"]), FakeNotifier(swallow_one), SECOND)
    assert now() <= START + 2 * SECOND + STOP_TIMEOUT


@in_fake_time
async def test_a_stop_does_not_wait_for_a_store_that_hangs() -> None:
    class HangingOutbox(InMemoryOutbox):
        async def lease(self, **_: object) -> list[OutboxEntry]:
            await asyncio.Event().wait()
            return []

    await deliver(HangingOutbox(), FakeNotifier(), SECOND)
    assert now() == START + SECOND + STOP_TIMEOUT


@in_fake_time
async def test_log_lines_name_the_user_and_never_the_address(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def fail_in_both_ways(event: UserRegistered) -> None:
        if name_of(event) == "secret1":
            raise Undeliverable(f"no mailbox at {event.email}")
        await fail(event)

    outbox = outbox_with(["secret0", "secret1"])
    ids = [str(entry.event.user_id) for entry in await outbox.entries()]
    await deliver(outbox, FakeNotifier(fail_in_both_ways), 4 * DAY)

    assert f"attempt 1 to welcome user {ids[0]} failed (ConnectionError); next in 5 s" in caplog.text
    assert f"no welcome mail to user {ids[1]}: outbox entry 2 is dead-lettered after attempt 1" in caplog.text
    assert "secret" not in caplog.text
    assert "example" not in caplog.text


@pytest.mark.parametrize("kind", [ConnectionError, Undeliverable])
@in_fake_time
async def test_a_reason_is_one_printable_line(kind: type[Exception]) -> None:
    async def reply_maliciously(_: UserRegistered) -> None:
        raise kind("550 no\r\nsuch\tuser \x1b[31m\udcff\u202e é " + "x" * 10_000)

    outbox = outbox_with(["alice"])
    await deliver(outbox, FakeNotifier(reply_maliciously), SECOND)
    [entry] = await outbox.entries()
    assert entry.reason is not None
    assert "550 no  such user  [31m   é xx" in entry.reason
    assert len(entry.reason) <= MAX_REASON_LENGTH
