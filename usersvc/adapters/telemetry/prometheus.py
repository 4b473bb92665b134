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


class PrometheusMetrics:
    """The metrics of this process, or of all processes that share ``DIRECTORY``."""

    def __init__(self) -> None:
        self._shared = os.environ.get(DIRECTORY)
        registry = self._registry = CollectorRegistry()
        if self._shared is None:
            # These describe a single process.
            for collector in (ProcessCollector, PlatformCollector, GCCollector):
                collector(registry=registry)
        counter = partial(Counter, namespace="usersvc", registry=registry)
        histogram = partial(Histogram, namespace="usersvc", registry=registry)
        # These describe the storage or the program, not a process: the most recent value counts.
        gauge = partial(Gauge, namespace="usersvc", registry=registry, multiprocess_mode="mostrecent")

        requests = counter("http_requests", "Requests that got a response.", ["method", "route", "status"])
        request_seconds = histogram(
            "http_request_duration_seconds",
            "From the head of a request to the end of its response.",
            ["method", "route"],
            buckets=QUICK,
        )
        self._hashing_seconds = histogram(
            "hashing_duration_seconds",
            "Time to hash or verify a password, including the wait for a thread.",
            ["operation"],
            buckets=SLOW,
        )
        self._hashing_pending = gauge(
            "hashing_pending", "Passwords that are being hashed or wait for a thread.", multiprocess_mode="livesum"
        )
        self._hashing_refused = counter("hashing_refused", "Registrations rejected because the hashing queue was full.")
        self.rate_limit_fallbacks = counter(
            "rate_limit_fallbacks",
            "Registrations counted by one process only, because the shared rate limit was unavailable.",
        )
        storage_seconds = histogram(
            "storage_call_duration_seconds", "Duration of a storage call.", ["operation"], buckets=QUICK
        )
        self._storage_failures = counter("storage_failures", "Storage calls that failed.", ["operation"])
        self._deliveries = counter(
            "outbox_deliveries",
            "Attempts to deliver a notification, by outcome: delivered, retried, dead-lettered.",
            ["outcome"],
        )
        self._notification_seconds = histogram(
            "notification_duration_seconds", "Duration of an attempt to deliver a notification.", buckets=MAIL
        )
        self._outbox_pending = gauge("outbox_pending", "Notifications waiting for delivery.")
        self._outbox_dead_lettered = gauge("outbox_dead_lettered", "Notifications that are no longer retried.")
        self._outbox_oldest_seconds = gauge(
            "outbox_oldest_age_seconds",
            "Age of the oldest notification waiting for delivery, except those delayed by mail limits; 0 without any.",
        )
        build = gauge("build_info", "Always 1.", ["version", "python"])

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
            # Concurrent scrapes share one query, as counting may be slow.
            if self._reading_state is None or self._reading_state.done():
                self._reading_state = asyncio.create_task(outbox.state())
            state = await asyncio.shield(self._reading_state)
            oldest_age = 0.0 if state.oldest is None else max(0.0, (utc_now() - state.oldest).total_seconds())
            pending = nan if state.pending is None else state.pending
            dead_lettered = nan if state.dead_lettered is None else state.dead_lettered
        self._outbox_oldest_seconds.set(oldest_age)
        self._outbox_pending.set(pending)
        self._outbox_dead_lettered.set(dead_lettered)
        if self._shared is None:
            return generate_latest(self._registry)
        for file, pid in _files(Path(self._shared)):
            # The counters of ended processes stay in the sums.
            if file.name.startswith("gauge_live") and _has_ended(pid):
                file.unlink(missing_ok=True)
        all_processes = CollectorRegistry()
        MultiProcessCollector(all_processes, self._shared)  # type: ignore[no-untyped-call]  # untyped in the library
        return generate_latest(all_processes)

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
    for file, pid in _files(directory):
        # In a container, process ids repeat at each start.
        if pid == os.getpid() or _has_ended(pid):
            file.unlink(missing_ok=True)


def _files(directory: Path) -> Iterator[tuple[Path, int]]:
    """The library's files, each with the id of its process."""
    for file in directory.iterdir():
        if found := re.fullmatch(r"(?:counter|gauge_[a-z]+|histogram)_([0-9]{1,9})\.db", file.name):
            yield file, int(found[1])


def _has_ended(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        # A PermissionError means that the process belongs to another user.
        return isinstance(error, ProcessLookupError)
    return False
