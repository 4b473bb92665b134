"""The wrapper of ports forwards every call and reports it to an instrument, Prometheus among them."""

import asyncio
import inspect
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from tests.contract.test_users import quiet
from usersvc.adapters.memory import InMemoryOutbox, InMemoryUsers
from usersvc.adapters.telemetry.instrumented import Around, observed
from usersvc.adapters.telemetry.prometheus import PrometheusMetrics, begin_anew
from usersvc.application.clock import utc_now
from usersvc.application.errors import StorageUnavailable
from usersvc.application.outbox_entries import OutboxState
from usersvc.application.ports import Notifier, Outbox, PasswordHasher, Users
from usersvc.domain.events import UserRegistered


async def test_calls_of_the_storage_are_forwarded_and_counted() -> None:
    users, metrics = InMemoryUsers(), PrometheusMetrics()
    port: Users = observed(users, metrics.storage_call)
    alice = quiet("alice@example.com")

    assert await port.add_all([alice, quiet("ALICE@example.com")]) == [True, False]
    assert await users.archive.count() == 1
    assert await port.remove(alice.id) is True
    assert await port.remove(alice.id) is False
    figures = (await metrics.exposition(users.outbox)).decode()
    assert 'usersvc_storage_call_duration_seconds_count{operation="add_all"} 1.0' in figures
    assert 'usersvc_storage_call_duration_seconds_count{operation="remove"} 2.0' in figures


@pytest.mark.parametrize("outcome", ["delivered", "retried", "dead-lettered"])
async def test_the_outcome_of_a_delivery_is_counted(outcome: str) -> None:
    users, metrics = InMemoryUsers(), PrometheusMetrics()
    users.outbox.put(UserRegistered(uuid4(), "alice@example.com", utc_now()))
    outbox: Outbox = observed(users.outbox, metrics.storage_call, prefix="outbox_")
    [entry] = await outbox.lease(now=utc_now(), until=utc_now() + timedelta(minutes=1), limit=1)
    if outcome == "delivered":
        await outbox.delivered(entry)
    elif outcome == "retried":
        await outbox.reschedule(entry, due_at=utc_now(), reason="")
    else:
        await outbox.dead_letter(entry, reason="")
    metrics_text = (await metrics.exposition(users.outbox)).decode()
    assert f'usersvc_outbox_deliveries_total{{outcome="{outcome}"}} 1.0' in metrics_text


async def test_storage_failures_are_counted() -> None:
    class Broken(InMemoryUsers):
        async def remove(self, user_id: object) -> bool:
            raise StorageUnavailable

    users, metrics = Broken(), PrometheusMetrics()
    with pytest.raises(StorageUnavailable):
        await observed(users, metrics.storage_call).remove(quiet("alice@example.com").id)
    figures = (await metrics.exposition(users.outbox)).decode()
    assert 'usersvc_storage_failures_total{operation="remove"} 1.0' in figures


async def test_instruments_can_be_nested() -> None:
    calls: list[str] = []

    def instrument(name: str) -> Around:
        @contextmanager
        def around(operation: str) -> Iterator[None]:
            calls.append(f"{name} before {operation}")
            try:
                yield
            finally:
                calls.append(f"{name} after {operation}")

        return around

    outbox: Outbox = InMemoryOutbox()
    for name in ("metrics", "traces"):
        outbox = observed(outbox, instrument(name), prefix="outbox_")
    for _ in range(2):
        calls.clear()
        assert await outbox.next_due() is None
        assert calls == [
            "traces before outbox_next_due",
            "metrics before outbox_next_due",
            "metrics after outbox_next_due",
            "traces after outbox_next_due",
        ]


@pytest.mark.parametrize("port", [Users, Outbox, PasswordHasher, Notifier])
def test_every_method_of_a_port_is_a_coroutine_function_which_the_wrapper_needs(port: type) -> None:
    methods = [method for name, method in vars(port).items() if not name.startswith("_")]
    assert methods
    assert all(inspect.iscoroutinefunction(method) for method in methods)


async def test_unknown_metrics_of_the_outbox_are_nan() -> None:
    class Answering(InMemoryOutbox):
        answer: OutboxState | None

        async def state(self) -> OutboxState:
            if self.answer is None:
                raise StorageUnavailable
            return self.answer

    async def figures() -> dict[str, float]:
        lines = (await metrics.exposition(outbox)).decode().splitlines()
        told = dict(line.split() for line in lines if line.startswith("usersvc_outbox_") and "{" not in line)
        return {name: float(figure) for name, figure in told.items()}

    outbox, metrics = Answering(), PrometheusMetrics()
    day = timedelta(days=1)
    outbox.answer = OutboxState(pending=3, dead_lettered=2, oldest=utc_now() - day)
    known = await figures()
    assert (known["usersvc_outbox_pending"], known["usersvc_outbox_dead_lettered"]) == (3, 2)

    outbox.answer = OutboxState(pending=None, dead_lettered=None, oldest=utc_now() - 2 * day)
    uncounted = await figures()
    assert str(uncounted["usersvc_outbox_pending"]) == str(uncounted["usersvc_outbox_dead_lettered"]) == "nan"
    assert uncounted["usersvc_outbox_oldest_age_seconds"] >= 2 * day.total_seconds()

    outbox.answer = None
    assert {str(figure) for figure in (await figures()).values()} == {"nan"}


async def test_concurrent_scrapes_share_one_query_of_the_outbox() -> None:
    class Slow(InMemoryOutbox):
        asked = 0

        async def state(self) -> OutboxState:
            self.asked += 1
            await counted.wait()
            if self.asked == 2:
                raise StorageUnavailable
            return OutboxState(pending=self.asked, dead_lettered=0, oldest=None)

    outbox, metrics, counted = Slow(), PrometheusMetrics(), asyncio.Event()
    scrapes = [asyncio.create_task(metrics.exposition(outbox)) for _ in range(3)]
    await asyncio.sleep(0)
    # A cancelled scrape does not affect the others.
    scrapes.pop().cancel()
    counted.set()
    for _ in range(2):
        for figures in await asyncio.gather(*scrapes):
            told = b"1.0" if outbox.asked == 1 else b"NaN"
            assert b"\nusersvc_outbox_pending " + told + b"\n" in figures
        scrapes = [asyncio.create_task(metrics.exposition(outbox)) for _ in range(3)]
    await asyncio.gather(*scrapes)
    assert outbox.asked == 3


def test_metrics_of_ended_processes_are_deleted_at_the_start(tmp_path: Path) -> None:
    alive = os.getppid()
    pid = os.posix_spawnp("true", ["true"], os.environ)
    os.waitpid(pid, 0)
    theirs = {f"counter_{alive}.db", f"gauge_livesum_{alive}.db", "usersvc.db", "counter_.db", "notes_1.db"}
    of_ended = {f"{kind}_{pid}.db" for kind in ("counter", "gauge_livesum", "gauge_mostrecent", "histogram")}
    # In a container, process ids repeat at each start.
    own = {f"histogram_{os.getpid()}.db"}
    for name in theirs | of_ended | own:
        (tmp_path / name).touch()
    begin_anew(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == theirs
