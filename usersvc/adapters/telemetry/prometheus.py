"""Metrics for Prometheus: of requests, and of calls to the ports."""

import asyncio
import os
import platform
import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache, partial
from math import nan
from pathlib import Path
from tempfile import TemporaryFile

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.gc_collector import GCCollector
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector

import usersvc
from usersvc.application.clock import utc_now
from usersvc.application.errors import QueueFull, StorageUnavailable
from usersvc.application.outbox_entries import OutboxState
from usersvc.application.ports import Outbox

DIRECTORY = "PROMETHEUS_MULTIPROC_DIR"
"""The variable that names the directory in which processes share metrics; the library reads it when imported."""

QUICK = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SLOW = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.0, 4.0, 8.0, 16.0)
MAIL = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Buckets in seconds: for requests and storage, for hashing, and for mail servers."""

OUTCOMES = {"outbox_delivered": "delivered", "outbox_reschedule": "retried", "outbox_dead_letter": "dead-lettered"}
"""The outcome of a delivery, by the call that reports it to the outbox."""

METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE"})
"""Methods with a label of their own; clients can send any other."""

_FILE = re.compile(r"(counter|gauge_[a-z]+|histogram)_(?P<pid>[0-9]{1,9})\.db", re.ASCII)


class PrometheusMetrics:
    """The metrics of this process, or of all processes that share ``DIRECTORY``."""

    def __init__(self) -> None:
        self._shared = os.environ.get(DIRECTORY)
        registry = self._registry = CollectorRegistry()
        if self._shared is None:
            # These describe a single process.
            for collector in (ProcessCollector, PlatformCollector, GCCollector):
                collector(registry=registry)
        counter = partial(Counter, registry=registry)
        histogram = partial(Histogram, registry=registry)
        # These describe the storage or the program, not a process: the most recent value counts.
        gauge = partial(Gauge, registry=registry, multiprocess_mode="mostrecent")

        requests = counter("usersvc_http_requests", "Requests that got a response.", ["method", "route", "status"])
        request_seconds = histogram(
            "usersvc_http_request_duration_seconds",
            "From the head of a request to the end of its response.",
            ["method", "route"],
            buckets=QUICK,
        )
        self._hashing_seconds = histogram(
            "usersvc_hashing_duration_seconds",
            "Time to hash or verify a password, including the wait for a thread.",
            ["operation"],
            buckets=SLOW,
        )
        self._hashing_pending = gauge(
            "usersvc_hashing_pending",
            "Passwords that are being hashed or wait for a thread.",
            multiprocess_mode="livesum",
        )
        self._hashing_refused = counter(
            "usersvc_hashing_refused", "Registrations rejected because the hashing queue was full."
        )
        self.rate_limit_fallbacks = counter(
            "usersvc_rate_limit_fallbacks",
            "Registrations counted by one process only, because the shared rate limit was unavailable.",
        )
        storage_seconds = histogram(
            "usersvc_storage_call_duration_seconds", "Duration of a storage call.", ["operation"], buckets=QUICK
        )
        self._storage_failures = counter("usersvc_storage_failures", "Storage calls that failed.", ["operation"])
        self._deliveries = counter(
            "usersvc_outbox_deliveries",
            "Attempts to deliver a notification, by outcome: delivered, retried, dead-lettered.",
            ["outcome"],
        )
        self._notification_seconds = histogram(
            "usersvc_notification_duration_seconds", "Duration of an attempt to deliver a notification.", buckets=MAIL
        )
        self._outbox_pending = gauge("usersvc_outbox_pending", "Notifications waiting for delivery.")
        self._outbox_dead_lettered = gauge("usersvc_outbox_dead_lettered", "Notifications that are no longer retried.")
        self._outbox_oldest_seconds = gauge(
            "usersvc_outbox_oldest_age_seconds",
            "Age of the oldest notification waiting for delivery, except those delayed by mail limits; 0 without any.",
        )
        build = gauge("usersvc_build_info", "Always 1.", ["version", "python"])

        build.labels(usersvc.__version__, platform.python_version()).set(1)
        for outcome in OUTCOMES.values():
            # Exported from the start, so that the first one is an increase.
            self._deliveries.labels(outcome)
        # Looking up labels is slower than counting.
        self._requests_of, self._request_seconds_of = cache(requests.labels), cache(request_seconds.labels)
        self._storage_seconds_of = cache(storage_seconds.labels)
        self._reading_state: asyncio.Task[OutboxState] | None = None

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request and the seconds from its head to the end of its response.

        ``route`` is the template of the path, never the path itself, to bound the number of series.
        """
        method = method if method in METHODS else "other"
        self._requests_of(method, route, status).inc()
        self._request_seconds_of(method, route).observe(seconds)

    async def exposition(self, outbox: Outbox) -> bytes:
        """All metrics in Prometheus' text format 0.0.4; those of the outbox are NaN if they are unknown."""
        oldest_age = pending = dead_lettered = nan
        # The other metrics matter most when the storage is unavailable.
        with suppress(StorageUnavailable):
            state = await self._state_of(outbox)
            oldest_age = 0.0 if state.oldest is None else max(0.0, (utc_now() - state.oldest).total_seconds())
            pending = nan if state.pending is None else state.pending
            dead_lettered = nan if state.dead_lettered is None else state.dead_lettered
        self._outbox_oldest_seconds.set(oldest_age)
        self._outbox_pending.set(pending)
        self._outbox_dead_lettered.set(dead_lettered)
        if self._shared is None:
            return generate_latest(self._registry)
        for file in _files_of_ended_processes(Path(self._shared)):
            # Their counters stay in the sums. Another process may have deleted the file.
            if file.name.startswith("gauge_live"):
                file.unlink(missing_ok=True)
        all_processes = CollectorRegistry()
        MultiProcessCollector(all_processes, self._shared)  # type: ignore[no-untyped-call]  # untyped in the library
        return generate_latest(all_processes)

    async def _state_of(self, outbox: Outbox) -> OutboxState:
        """The state of the outbox; concurrent callers share one query, as counting may be slow."""
        if self._reading_state is None or self._reading_state.done():
            self._reading_state = asyncio.create_task(outbox.state())
        return await asyncio.shield(self._reading_state)

    @contextmanager
    def storage_call(self, operation: str) -> Iterator[None]:
        """Measure a storage call, and count its failure or the delivery outcome that it reports."""
        began = time.perf_counter()
        try:
            yield
            if operation in OUTCOMES:
                self._deliveries.labels(OUTCOMES[operation]).inc()
        except StorageUnavailable:
            self._storage_failures.labels(operation).inc()
            raise
        finally:
            self._storage_seconds_of(operation).observe(time.perf_counter() - began)

    @contextmanager
    def hashing(self, operation: str) -> Iterator[None]:
        """Measure a hash or verification, and count rejections."""
        began = time.perf_counter()
        with self._hashing_pending.track_inprogress(), self._hashing_refused.count_exceptions(QueueFull):
            yield
            self._hashing_seconds.labels(operation).observe(time.perf_counter() - began)

    def notification(self, _operation: str) -> AbstractContextManager[object]:
        """Measure an attempt to deliver, successful or not."""
        return self._notification_seconds.time()


def delete_old_metrics(directory: Path) -> None:
    """Delete the metrics of ended processes, which a new process with the same id would continue to count.

    Raises:
        OSError: it is not a writable directory.
    """
    with TemporaryFile(dir=directory):
        pass
    for file in _files_of_ended_processes(directory, own=True):
        file.unlink(missing_ok=True)


def _files_of_ended_processes(directory: Path, *, own: bool = False) -> Iterator[Path]:
    """The library's files of ended processes, and if ``own``, of those that had this process's id."""
    for file in directory.iterdir():
        if found := _FILE.fullmatch(file.name):
            pid = int(found["pid"])
            if own if pid == os.getpid() else not _is_running(pid):
                yield file


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # it belongs to another user
    return True
