"""Metrics for Prometheus: of requests, and of calls to the ports (an ``Instrument``)."""

import asyncio
import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
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
"""Names the directory in which several processes share their metrics; the library reads it when imported."""

QUICK = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SLOW = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.0, 4.0, 8.0, 16.0)
MAIL = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Buckets in seconds: for requests and storage, for hashing, and for mail servers."""

OUTCOMES = {
    "outbox_delivered": "delivered",
    "outbox_reschedule": "retried",
    "outbox_dead_letter": "dead-lettered",
}
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
            ProcessCollector(registry=registry)
            PlatformCollector(registry=registry)
            GCCollector(registry=registry)
        self.requests = Counter(
            "usersvc_http_requests", "Requests that got a response.", ["method", "route", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "usersvc_http_request_duration_seconds",
            "From the head of a request to the end of its response.",
            ["method", "route"],
            buckets=QUICK,
            registry=registry,
        )
        self.hashing_seconds = Histogram(
            "usersvc_hashing_duration_seconds",
            "Time to hash or verify a password, including the wait for a thread.",
            ["operation"],
            buckets=SLOW,
            registry=registry,
        )
        self.hashing_pending = Gauge(
            "usersvc_hashing_pending",
            "Passwords that are being hashed or wait for a thread.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        # The file may be that of a killed process with the same process id.
        self.hashing_pending.set(0)
        self.hashing_refused = Counter(
            "usersvc_hashing_refused", "Registrations rejected because the hashing queue was full.", registry=registry
        )
        self.rate_limit_fallbacks = Counter(
            "usersvc_rate_limit_fallbacks",
            "Registrations counted by one process only, because the shared rate limit was unavailable.",
            registry=registry,
        )
        self.storage_seconds = Histogram(
            "usersvc_storage_call_duration_seconds",
            "Duration of a storage call.",
            ["operation"],
            buckets=QUICK,
            registry=registry,
        )
        self.storage_failures = Counter(
            "usersvc_storage_failures", "Storage calls that failed.", ["operation"], registry=registry
        )
        self.outbox_answers = Counter(
            "usersvc_outbox_deliveries",
            "Attempts to deliver a notification, by outcome: delivered, retried, dead-lettered.",
            ["outcome"],
            registry=registry,
        )
        self.notification_seconds = Histogram(
            "usersvc_notification_duration_seconds",
            "Duration of an attempt to deliver a notification.",
            buckets=MAIL,
            registry=registry,
        )
        # These describe the storage, not a process: the most recent value counts.
        self.outbox_pending = Gauge(
            "usersvc_outbox_pending",
            "Notifications waiting for delivery.",
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        self.outbox_dead_lettered = Gauge(
            "usersvc_outbox_dead_lettered",
            "Notifications that are no longer retried.",
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        self.outbox_oldest_seconds = Gauge(
            "usersvc_outbox_oldest_age_seconds",
            "Age of the oldest notification waiting for delivery, except those delayed by mail limits; 0 without any.",
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        build = Gauge(
            "usersvc_build_info",
            "Always 1.",
            ["version", "python"],
            multiprocess_mode="max",
            registry=registry,
        )
        build.labels(usersvc.__version__, platform.python_version()).set(1)
        for outcome in OUTCOMES.values():
            # Exported from the start, so that the first one is an increase.
            self.outbox_answers.labels(outcome)
        # Looking up labels is slower than counting.
        self._storage_seconds_of = cache(self.storage_seconds.labels)
        self._reading_state: asyncio.Task[OutboxState] | None = None
        self._of_request: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request.

        Args:
            method: as received.
            route: the template of the path, never the path itself, to bound the number of series.
            status: of the response.
            seconds: from the head of the request to the end of the response.
        """
        key = (method if method in METHODS else "other", route, status)
        found = self._of_request.get(key)
        if found is None:
            found = (
                self.requests.labels(key[0], route, str(status)),
                self.request_seconds.labels(key[0], route),
            )
            self._of_request[key] = found
        counter, histogram = found
        counter.inc()
        histogram.observe(seconds)

    async def exposition(self, outbox: Outbox) -> bytes:
        """All metrics in Prometheus' text format 0.0.4; those of the outbox are NaN if they are unknown."""
        oldest_age = pending = dead_lettered = nan
        # The other metrics matter most when the storage is unavailable.
        with suppress(StorageUnavailable):
            state = await self._state_of(outbox)
            oldest_age = 0.0 if state.oldest is None else max(0.0, (utc_now() - state.oldest).total_seconds())
            pending = nan if state.pending is None else state.pending
            dead_lettered = nan if state.dead_lettered is None else state.dead_lettered
        self.outbox_oldest_seconds.set(oldest_age)
        self.outbox_pending.set(pending)
        self.outbox_dead_lettered.set(dead_lettered)
        if self._shared is None:
            return generate_latest(self._registry)
        _remove_live_gauges_of_ended_processes(Path(self._shared))
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
                self.outbox_answers.labels(OUTCOMES[operation]).inc()
        except StorageUnavailable:
            self.storage_failures.labels(operation).inc()
            raise
        finally:
            self._storage_seconds_of(operation).observe(time.perf_counter() - began)

    @contextmanager
    def hashing(self, operation: str) -> Iterator[None]:
        """Measure a hash or verification, and count rejections."""
        began = time.perf_counter()
        self.hashing_pending.inc()
        try:
            yield
            self.hashing_seconds.labels(operation).observe(time.perf_counter() - began)
        except QueueFull:
            self.hashing_refused.inc()
            raise
        finally:
            self.hashing_pending.dec()

    @contextmanager
    def notification(self, _operation: str) -> Iterator[None]:
        """Measure an attempt to deliver, successful or not."""
        with self.notification_seconds.time():
            yield


def begin_anew(directory: Path) -> None:
    """Delete the metrics of ended processes before the service starts.

    Otherwise a process that gets the same process id would continue to count from them.

    Raises:
        OSError: it is not a writable directory.
    """
    with TemporaryFile(dir=directory):
        pass
    for file, pid in _files(directory):
        if pid == os.getpid() or not _is_running(pid):
            file.unlink(missing_ok=True)


def _remove_live_gauges_of_ended_processes(directory: Path) -> None:
    """Delete the live gauges of ended processes; their counters stay in the sums."""
    for file, pid in _files(directory):
        if file.name.startswith("gauge_live") and not _is_running(pid):
            # Another process may have deleted it.
            file.unlink(missing_ok=True)


def _files(directory: Path) -> Iterator[tuple[Path, int]]:
    """The library's files with their process ids."""
    for file in directory.iterdir():
        if found := _FILE.fullmatch(file.name):
            yield file, int(found["pid"])


def _is_running(pid: int) -> bool:
    if sys.platform == "win32":
        # On Windows, signal 0 is Ctrl-C and would stop the process.
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # It belongs to another user.
        return True
    return True
