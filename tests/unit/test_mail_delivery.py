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
from usersvc.application.outbox_entries import LAST, OutboxEntry
from usersvc.application.ports import Notifier, Outbox
from usersvc.application.registration import UserRegistrationService
from usersvc.domain.events import UserRegistered
from usersvc.domain.user import PasswordHash, User

SECOND = timedelta(seconds=1)


class FakeNotifier:
    """A ``Notifier`` that records attempts and successes with their times; ``do`` is called for each attempt."""

    def __init__(self, do: Callable[[UserRegistered], Awaitable[None]] | None = None) -> None:
        self._do = do
        self.attempts: list[tuple[str, datetime]] = []
        self.sent: list[tuple[str, datetime]] = []

    async def welcome(self, event: UserRegistered) -> None:
        name = name_of(event)
        self.attempts.append((name, now()))
        if self._do is not None:
            await self._do(event)
        self.sent.append((name, now()))


def name_of(event: UserRegistered) -> str:
    return event.email.partition("@")[0]


async def hang(_: UserRegistered) -> None:
    await asyncio.Event().wait()


async def fail(event: UserRegistered) -> None:
    raise ConnectionError(f"cannot reach {event.email}")


async def add(outbox: InMemoryOutbox, name: str = "alice") -> None:
    registration = User.register(email=f"{name}@example.com", password="correct horse battery", age=30)
    for event in registration.complete(PasswordHash("$hash"), at=now()).events:
        outbox.put(event)


def delivery(outbox: Outbox, notifier: Notifier) -> MailDelivery:
    return MailDelivery(outbox, notifier, clock=now)


@pytest.fixture(autouse=True)
def _without_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("usersvc.application.mail_delivery.random", lambda: 0.0)


async def passed(duration: timedelta) -> None:
    await asyncio.sleep(duration.total_seconds())


@in_fake_time
async def test_a_new_user_gets_one_mail_immediately() -> None:
    users, mailbag = InMemoryUsers(), Mailbag()
    told = delivery(users.outbox, mailbag)
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
async def test_pending_entries_are_delivered_at_the_start() -> None:
    outbox, notifier = InMemoryOutbox(), FakeNotifier()
    for n in range(3 * CONCURRENCY):
        await add(outbox, f"user{n}")
    async with delivery(outbox, notifier):
        await passed(SECOND)

    assert notifier.sent == [(f"user{n}", START) for n in range(3 * CONCURRENCY)]


@in_fake_time
async def test_entries_of_another_process_are_found_by_polling() -> None:
    outbox, notifier = InMemoryOutbox(), FakeNotifier()
    async with delivery(outbox, notifier):
        await passed(SECOND)
        await add(outbox)
        await passed(POLL_INTERVAL)
    [(_, at)] = notifier.sent
    assert at <= START + POLL_INTERVAL


@given(st.integers(1, 10**6), st.floats(0, 1))
def test_delays_are_from_seconds_to_an_hour(attempt: int, jitter: float) -> None:
    assert timedelta(seconds=2) <= retry_delay(attempt, jitter) <= timedelta(hours=1)
    assert retry_delay(attempt, 0) / 2 <= retry_delay(attempt, jitter) <= retry_delay(attempt, 0)


def test_delays_double_up_to_the_longest() -> None:
    waits = [retry_delay(attempt, 0) for attempt in range(1, 13)]
    assert waits[0] == FIRST_DELAY
    assert waits[-1] == MAX_DELAY
    assert all(after == min(2 * before, MAX_DELAY) for before, after in pairwise(waits))


@pytest.mark.parametrize(("jitter", "at_least"), [(0, timedelta(hours=50)), (1, timedelta(hours=25))])
def test_all_delays_add_up_to_more_than_a_day(jitter: float, at_least: timedelta) -> None:
    total = sum((retry_delay(attempt, jitter) for attempt in range(1, MAX_ATTEMPTS)), timedelta())
    assert at_least <= total < at_least + 2 * MAX_DELAY


@in_fake_time
async def test_a_mail_is_retried_while_the_server_is_down() -> None:
    async def down_for_five_hours(event: UserRegistered) -> None:
        if now() < START + timedelta(hours=5):
            await fail(event)

    outbox, notifier = InMemoryOutbox(), FakeNotifier(down_for_five_hours)
    async with delivery(outbox, notifier):
        await add(outbox)
        await passed(timedelta(hours=8))

    [(_, at)] = notifier.sent
    assert START + timedelta(hours=5) <= at <= START + timedelta(hours=6)
    gaps = [after - before for (_, before), (_, after) in pairwise(notifier.attempts)]
    assert gaps[:4] == [timedelta(seconds=5), timedelta(seconds=10), timedelta(seconds=20), timedelta(seconds=40)]
    assert max(gaps) == MAX_DELAY
    assert await outbox.entries() == []


@in_fake_time
async def test_an_entry_is_dead_lettered_with_the_reason_after_the_last_attempt() -> None:
    outbox, notifier = InMemoryOutbox(), FakeNotifier(fail)
    async with delivery(outbox, notifier):
        await add(outbox)
        await passed(timedelta(days=4))

    [entry] = await outbox.entries()
    assert (entry.due_at, entry.reason) == (None, "ConnectionError: cannot reach alice@example.com")
    assert len(notifier.attempts) == entry.attempts == MAX_ATTEMPTS
    assert START + MAX_AGE <= notifier.attempts[-1][1] <= START + timedelta(days=3)


@in_fake_time
async def test_age_alone_does_not_dead_letter_an_entry() -> None:
    outbox, notifier = InMemoryOutbox(), FakeNotifier(fail)
    await add(outbox)
    await passed(timedelta(days=5))
    async with delivery(outbox, notifier):
        await passed(timedelta(days=1))

    [entry] = await outbox.entries()
    assert entry.due_at is not None


@in_fake_time
async def test_attempts_alone_do_not_dead_letter_an_entry() -> None:
    outbox, notifier = InMemoryOutbox(), FakeNotifier(fail)
    await add(outbox)
    for _ in range(2 * MAX_ATTEMPTS):
        assert await outbox.lease(now=now(), until=now() + SECOND, limit=1)
        await passed(SECOND)
    async with delivery(outbox, notifier):
        await passed(SECOND)

    [entry] = await outbox.entries()
    assert entry.due_at is not None


@in_fake_time
async def test_an_undeliverable_mail_is_dead_lettered_immediately() -> None:
    async def refuse(_: UserRegistered) -> None:
        raise Undeliverable("no such mailbox")

    outbox, notifier = InMemoryOutbox(), FakeNotifier(refuse)
    async with delivery(outbox, notifier):
        await add(outbox)
        await passed(timedelta(hours=3))

    [entry] = await outbox.entries()
    assert (entry.due_at, entry.reason, entry.attempts) == (None, "no such mailbox", 1)
    assert len(notifier.attempts) == 1


@in_fake_time
async def test_a_dead_lettered_entry_can_be_retried() -> None:
    up = asyncio.Event()

    async def refuse_at_first(_: UserRegistered) -> None:
        if not up.is_set():
            raise Undeliverable("no such mailbox")

    outbox, notifier = InMemoryOutbox(), FakeNotifier(refuse_at_first)
    async with delivery(outbox, notifier):
        await add(outbox)
        await passed(SECOND)
        up.set()
        [entry] = await outbox.entries()
        assert await outbox.retry(entry.id, now=now())
        await passed(POLL_INTERVAL)
    assert len(notifier.sent) == 1


@in_fake_time
async def test_a_failing_delivery_does_not_delay_others() -> None:
    async def fail_to_bob(event: UserRegistered) -> None:
        if name_of(event) == "bob":
            await fail(event)

    outbox, notifier = InMemoryOutbox(), FakeNotifier(fail_to_bob)
    async with delivery(outbox, notifier):
        for name in ("bob", "alice", "carol"):
            await add(outbox, name)
        await passed(POLL_INTERVAL)
    assert [name for name, _ in notifier.sent] == ["alice", "carol"]


@in_fake_time
async def test_a_hanging_delivery_times_out_and_is_retried() -> None:
    async def hang_at_first(event: UserRegistered) -> None:
        if now() < START + SECOND:
            await hang(event)

    outbox, notifier = InMemoryOutbox(), FakeNotifier(hang_at_first)
    await add(outbox)
    async with delivery(outbox, notifier):
        await passed(2 * DELIVERY_TIMEOUT)
    assert notifier.sent == [("alice", START + DELIVERY_TIMEOUT + FIRST_DELAY)]


@pytest.mark.parametrize("hanging", [CONCURRENCY - 1, CONCURRENCY, 3 * CONCURRENCY, 6 * CONCURRENCY])
def test_hanging_deliveries_delay_others_by_less_than_the_timeout(hanging: int) -> None:
    @in_fake_time
    async def run() -> None:
        async def hang_for_all_but_alice(event: UserRegistered) -> None:
            if name_of(event) != "alice":
                await hang(event)

        outbox, notifier = InMemoryOutbox(), FakeNotifier(hang_for_all_but_alice)
        for n in range(hanging):
            await add(outbox, f"user{n}")
        await add(outbox)
        async with delivery(outbox, notifier):
            await passed(DELIVERY_TIMEOUT)
        assert [name for name, _ in notifier.sent] == ["alice"]
        assert notifier.sent[0][1] <= START + hanging // CONCURRENCY * SLOW_AFTER

    run()


@in_fake_time
async def test_the_number_of_concurrent_deliveries_is_bounded() -> None:
    in_hand = most = 0

    async def count(event: UserRegistered) -> None:
        nonlocal in_hand, most
        in_hand += 1
        most = max(most, in_hand)
        try:
            await hang(event)
        finally:
            in_hand -= 1

    outbox, notifier = InMemoryOutbox(), FakeNotifier(count)
    for n in range(200):
        await add(outbox, f"user{n}")
    async with delivery(outbox, notifier):
        await passed(timedelta(minutes=30))
    assert most == CONCURRENCY * DELIVERY_TIMEOUT / SLOW_AFTER == 48


class FlakyOutbox(InMemoryOutbox):
    """An outbox that raises ``error`` while it is set."""

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
def test_delivery_continues_after_storage_failures(error: Exception, caplog: pytest.LogCaptureFixture) -> None:
    @in_fake_time
    async def run() -> None:
        outbox, notifier = FlakyOutbox(), FakeNotifier()
        async with delivery(outbox, notifier) as told:
            outbox.error = error
            await add(outbox)
            told.wake()
            await passed(timedelta(minutes=10))
            assert notifier.attempts == []
            outbox.error = None
            await passed(FIRST_DELAY)
            assert len(notifier.sent) == 1
        # It is retried every few seconds, not in a busy loop.
        assert 10 * 60 / 5 <= len(caplog.records) <= 10 * 60 / 5 + 3

    run()


@in_fake_time
async def test_reporting_a_delivery_is_retried_during_the_lease() -> None:
    outbox = FlakyOutbox()

    async def then_the_disk_is_full(_: UserRegistered) -> None:
        outbox.error = StorageUnavailable("disk full")

    notifier = FakeNotifier(then_the_disk_is_full)
    await add(outbox)
    async with delivery(outbox, notifier):
        await passed(timedelta(minutes=1))
        outbox.error = None
        await passed(timedelta(minutes=10))

    assert len(notifier.attempts) == 1
    assert await outbox.entries() == []


@in_fake_time
async def test_a_delivery_that_could_not_be_reported_is_sent_again() -> None:
    outbox = FlakyOutbox()

    async def the_disk_is_full_for_minutes(_: UserRegistered) -> None:
        outbox.error = StorageUnavailable("disk full") if now() < START + timedelta(minutes=1) else None

    notifier = FakeNotifier(the_disk_is_full_for_minutes)
    await add(outbox)
    async with delivery(outbox, notifier):
        await passed(timedelta(minutes=5))
        outbox.error = None
        await passed(timedelta(minutes=5))

    assert len(notifier.attempts) == 2
    assert await outbox.entries() == []


@in_fake_time
async def test_an_unexpected_error_is_logged_without_the_address(
    caplog: pytest.LogCaptureFixture,
) -> None:
    outbox = FlakyOutbox()

    async def then_there_is_a_bug(event: UserRegistered) -> None:
        outbox.error = RuntimeError(f"about {event.email}") if now() < START + SECOND else None

    notifier = FakeNotifier(then_there_is_a_bug)
    await add(outbox)
    async with delivery(outbox, notifier):
        await passed(SECOND)
        outbox.error = None
        await passed(2 * LEASE)

    assert len(notifier.attempts) == 2
    assert await outbox.entries() == []
    assert "unexpected error with outbox entry 1: RuntimeError" in caplog.text


@in_fake_time
async def test_an_entry_of_a_crashed_worker_is_sent_when_its_lease_expires() -> None:
    outbox, notifier = InMemoryOutbox(), FakeNotifier()
    await add(outbox)
    [_] = await outbox.lease(now=now(), until=now() + LEASE, limit=1)
    async with delivery(outbox, notifier):
        await passed(LEASE - SECOND)
        assert notifier.attempts == []
        await passed(2 * SECOND)
    assert notifier.sent == [("alice", START + LEASE)]


@in_fake_time
async def test_two_workers_send_each_mail_once() -> None:
    async def take_a_moment(_: UserRegistered) -> None:
        await passed(0.3 * SECOND)

    outbox, notifier = InMemoryOutbox(), FakeNotifier(take_a_moment)
    async with delivery(outbox, notifier) as one, delivery(outbox, notifier) as other:
        for n in range(100):
            await add(outbox, f"user{n}")
            one.wake()
            other.wake()
        await passed(timedelta(hours=1))

    assert Counter(name for name, _ in notifier.attempts) == {f"user{n}": 1 for n in range(100)}


@in_fake_time
async def test_a_stop_waits_for_running_deliveries_and_starts_no_more() -> None:
    async def take_long(_: UserRegistered) -> None:
        await passed(STOP_TIMEOUT - SECOND)

    outbox, notifier = InMemoryOutbox(), FakeNotifier(take_long)
    for n in range(2 * CONCURRENCY):
        await add(outbox, f"user{n}")
    async with delivery(outbox, notifier):
        await passed(0.5 * SECOND)

    assert len(notifier.sent) == len(notifier.attempts) == CONCURRENCY
    waiting = await outbox.entries()
    assert [(entry.attempts, entry.lease) for entry in waiting] == [(0, None)] * CONCURRENCY


@in_fake_time
async def test_a_stop_cancels_slow_deliveries_which_are_retried_after_the_next_start() -> None:
    outbox, notifier = InMemoryOutbox(), FakeNotifier(hang)
    await add(outbox)
    async with delivery(outbox, notifier):
        await passed(SECOND)
    assert now() == START + SECOND + STOP_TIMEOUT
    assert asyncio.all_tasks() == {asyncio.current_task()}

    other = FakeNotifier()
    async with delivery(outbox, other):
        await passed(LEASE)
    assert len(other.sent) == 1


@in_fake_time
async def test_a_stop_repeats_a_swallowed_cancellation() -> None:
    async def swallow_one(event: UserRegistered) -> None:
        with suppress(asyncio.CancelledError):
            await hang(event)
        await hang(event)

    outbox = InMemoryOutbox()
    await add(outbox)
    async with delivery(outbox, FakeNotifier(swallow_one)):
        await passed(SECOND)
    assert now() <= START + 2 * SECOND + STOP_TIMEOUT


@in_fake_time
async def test_a_stop_does_not_wait_for_a_store_that_hangs() -> None:
    class HangingOutbox(InMemoryOutbox):
        async def lease(self, **_: object) -> list[OutboxEntry]:
            await asyncio.Event().wait()
            return []

    async with delivery(HangingOutbox(), FakeNotifier()):
        await passed(SECOND)
    assert now() == START + SECOND + STOP_TIMEOUT


@in_fake_time
async def test_delivery_can_be_restarted() -> None:
    outbox, notifier = InMemoryOutbox(), FakeNotifier()
    told = delivery(outbox, notifier)
    async with told:
        await passed(SECOND)
    await add(outbox)
    await passed(timedelta(hours=1))
    assert notifier.attempts == []
    async with told:
        await passed(SECOND)
    assert len(notifier.sent) == 1


@in_fake_time
async def test_log_lines_name_the_user_and_never_the_address(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    async def fail_in_every_way(event: UserRegistered) -> None:
        if name_of(event) == "secret1":
            raise Undeliverable(f"no mailbox at {event.email}")
        if name_of(event) == "secret2":
            await hang(event)
        await fail(event)

    outbox, notifier = InMemoryOutbox(), FakeNotifier(fail_in_every_way)
    for n in range(3):
        await add(outbox, f"secret{n}")
    ids = [str(entry.event.user_id) for entry in await outbox.entries()]
    async with delivery(outbox, notifier):
        await passed(timedelta(days=4))

    assert all(user_id in caplog.text for user_id in ids)
    assert f"attempt 1 to welcome user {ids[0]} failed (ConnectionError); next in 5 s" in caplog.text
    assert f"no welcome mail to user {ids[1]}: outbox entry 2 is dead-lettered after attempt 1" in caplog.text
    assert "secret" not in caplog.text
    assert "example" not in caplog.text


@pytest.mark.parametrize("kind", [ConnectionError, Undeliverable])
def test_a_reason_is_one_printable_line(kind: type[Exception]) -> None:
    @in_fake_time
    async def run() -> None:
        async def answer_in_a_nasty_way(_: UserRegistered) -> None:
            raise kind("550 no\r\nsuch\tuser \x1b[31m\udcff\u202e é " + "x" * 10_000)

        outbox = InMemoryOutbox()
        await add(outbox)
        async with delivery(outbox, FakeNotifier(answer_in_a_nasty_way)):
            await passed(SECOND)
        [entry] = await outbox.entries()
        assert entry.reason is not None
        assert entry.reason.isprintable()
        assert "550 no  such user  [31m   é xx" in entry.reason
        assert len(entry.reason) <= MAX_REASON_LENGTH

    run()
