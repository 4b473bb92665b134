"""Every call of a port is forwarded and reported to an instrument, Prometheus among them."""

import asyncio
import inspect
import os
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest
from prometheus_client.parser import text_string_to_metric_families

from usersvc.adapters.memory import InMemoryOutbox, InMemoryUsers
from usersvc.adapters.telemetry.instrumented import observed
from usersvc.adapters.telemetry.prometheus import PrometheusMetrics, delete_old_metrics
from usersvc.application.clock import utc_now
from usersvc.application.errors import QueueFull, StorageUnavailable
from usersvc.application.outbox_entries import OutboxState
from usersvc.application.ports import Notifier, Outbox, PasswordHasher, Users
from usersvc.domain.events import UserRegistered


async def exported(metrics: PrometheusMetrics, outbox: Outbox) -> dict[str, float]:
    """The values of the metrics, by name and label values."""
    text = (await metrics.exposition(outbox)).decode()
    samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]
    return {" ".join([sample.name, *sample.labels.values()]): sample.value for sample in samples}


class FakeOutbox(InMemoryOutbox):
    """An outbox with the given state, or none while it is unavailable."""

    reported: OutboxState | None = None
    calls = 0

    async def state(self) -> OutboxState:
        self.calls += 1
        await asyncio.sleep(0)
        if self.reported is None:
            raise StorageUnavailable
        return self.reported


async def test_storage_calls_are_forwarded_and_counted() -> None:
    users, metrics = InMemoryUsers(), PrometheusMetrics()
    # Nested as for metrics and traces.
    port: Users = observed(observed(users, metrics.storage_call), metrics.storage_call, prefix="outer_")
    assert await port.add_all([]) == []
    assert await port.remove(uuid4()) is False
    assert await port.remove(user_id=uuid4()) is False
    values = await exported(metrics, users.outbox)
    assert values["usersvc_storage_call_duration_seconds_count add_all"] == 1
    assert values["usersvc_storage_call_duration_seconds_count remove"] == 2
    assert values["usersvc_storage_call_duration_seconds_count outer_remove"] == 2


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
    values = await exported(metrics, users.outbox)
    counts = {name: values[f"usersvc_outbox_deliveries_total {name}"] for name in ("delivered", "retried", outcome)}
    assert counts == {"delivered": 0, "retried": 0} | {outcome: 1}


async def test_failed_calls_are_counted() -> None:
    outbox, metrics = FakeOutbox(), PrometheusMetrics()
    with pytest.raises(StorageUnavailable):
        await observed(outbox, metrics.storage_call, prefix="outbox_").state()
    with pytest.raises(QueueFull), metrics.hashing("hash"):
        raise QueueFull(1)
    values = await exported(metrics, outbox)
    assert values["usersvc_storage_failures_total outbox_state"] == 1
    assert values["usersvc_hashing_refused_total"] == 1
    assert values["usersvc_hashing_pending"] == 0


@pytest.mark.parametrize("port", [Users, Outbox, PasswordHasher, Notifier])
def test_every_method_of_a_port_is_a_coroutine_function_as_the_wrapper_requires(port: type) -> None:
    methods = [method for name, method in vars(port).items() if not name.startswith("_")]
    assert methods
    assert all(inspect.iscoroutinefunction(method) for method in methods)


async def test_unknown_metrics_of_the_outbox_are_nan() -> None:
    outbox, metrics = FakeOutbox(), PrometheusMetrics()

    async def values() -> list[str]:
        found = await exported(metrics, outbox)
        return [f"{found[f'usersvc_outbox_{name}']:.0f}" for name in ("pending", "dead_lettered", "oldest_age_seconds")]

    outbox.reported = OutboxState(pending=3, dead_lettered=2, oldest=utc_now() - timedelta(days=1))
    assert await values() == ["3", "2", "86400"]
    outbox.reported = OutboxState(pending=None, dead_lettered=None, oldest=None)
    assert await values() == ["nan", "nan", "0"]
    outbox.reported = None
    assert await values() == ["nan", "nan", "nan"]


async def test_concurrent_scrapes_share_one_query_of_the_outbox() -> None:
    outbox, metrics = FakeOutbox(), PrometheusMetrics()
    for state, pending in ((OutboxState(pending=7, dead_lettered=0, oldest=None), "7.0"), (None, "nan")):
        outbox.calls, outbox.reported = 0, state
        scrapes = [asyncio.create_task(exported(metrics, outbox)) for _ in range(3)]
        await asyncio.sleep(0)
        # A cancelled scrape does not affect the others.
        scrapes.pop().cancel()
        values = await asyncio.gather(*scrapes)
        assert [str(each["usersvc_outbox_pending"]) for each in values] == [pending] * 2
        assert outbox.calls == 1


def test_metrics_of_ended_processes_are_deleted_at_the_start(tmp_path: Path) -> None:
    alive = os.getppid()
    ended = os.posix_spawnp("true", ["true"], os.environ)
    os.waitpid(ended, 0)
    kept = {f"counter_{alive}.db", f"gauge_livesum_{alive}.db", "usersvc.db", "counter_.db", "notes_1.db"}
    deleted = {f"{kind}_{ended}.db" for kind in ("counter", "gauge_livesum", "gauge_mostrecent", "histogram")}
    # In a container, process ids repeat at each start.
    deleted.add(f"histogram_{os.getpid()}.db")
    for name in kept | deleted:
        (tmp_path / name).touch()
    delete_old_metrics(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == kept
