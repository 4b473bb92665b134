"""Figures for Prometheus: of requests, and of what happens behind the ports (see ``observed.Instrument``)."""

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
"""The variable that names where several processes share their figures; the library reads it when it is imported."""

QUICK = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
SLOW = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.0, 4.0, 8.0, 16.0)
MAIL = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Bounds of the histograms, in seconds: for what takes milliseconds, for hashing, and for talking to mail servers."""

OUTCOMES = {"outbox_delivered": "delivered", "outbox_reschedule": "retried", "outbox_dead_letter": "dead-lettered"}
"""What came of an attempt to deliver, by the call that tells the outbox."""

METHODS = frozenset({"GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE"})
"""Those told by name; clients may make up others."""

_FILE = re.compile(r"(counter|gauge_[a-z]+|histogram)_(?P<pid>[0-9]{1,9})\.db", re.ASCII)


class PrometheusMetrics:
    """All figures of a process; with ``DIRECTORY`` in the environment, of all processes that share it."""

    def __init__(self) -> None:
        self._shared = os.environ.get(DIRECTORY)
        registry = self._registry = CollectorRegistry()
        if self._shared is None:
            # They tell of the one process that answers.
            ProcessCollector(registry=registry)
            PlatformCollector(registry=registry)
            GCCollector(registry=registry)
        self.requests = Counter(
            "usersvc_http_requests", "Requests answered.", ["method", "route", "status"], registry=registry
        )
        self.request_seconds = Histogram(
            "usersvc_http_request_duration_seconds",
            "From the head of a request to its answer.",
            ["method", "route"],
            buckets=QUICK,
            registry=registry,
        )
        self.hashing_seconds = Histogram(
            "usersvc_hashing_duration_seconds",
            "What hashing or verifying a password takes, waiting for a thread included.",
            ["operation"],
            buckets=SLOW,
            registry=registry,
        )
        self.hashing_pending = Gauge(
            "usersvc_hashing_pending",
            "Passwords that wait for a thread or are in one.",
            multiprocess_mode="livesum",
            registry=registry,
        )
        # A process that was killed may have had the same number.
        self.hashing_pending.set(0)
        self.hashing_refused = Counter(
            "usersvc_hashing_refused", "Registrations refused for want of room.", registry=registry
        )
        self.rate_limit_fallbacks = Counter(
            "usersvc_rate_limit_fallbacks",
            "Registrations that a process counted by itself, since the shared rate limit was out of reach.",
            registry=registry,
        )
        self.storage_seconds = Histogram(
            "usersvc_storage_call_duration_seconds",
            "What a call of the storage takes.",
            ["operation"],
            buckets=QUICK,
            registry=registry,
        )
        self.storage_failures = Counter(
            "usersvc_storage_failures", "Calls that the storage could not answer.", ["operation"], registry=registry
        )
        self.outbox_answers = Counter(
            "usersvc_outbox_deliveries",
            "Attempts to deliver a notification, by what came of them: delivered, retried, dead-lettered.",
            ["outcome"],
            registry=registry,
        )
        self.notification_seconds = Histogram(
            "usersvc_notification_duration_seconds",
            "What an attempt to deliver a notification takes.",
            buckets=MAIL,
            registry=registry,
        )
        # Of the storage, not of a process: whoever has looked last knows best.
        self.outbox_pending = Gauge(
            "usersvc_outbox_pending",
            "Notifications that are still to be delivered.",
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        self.outbox_set_aside = Gauge(
            "usersvc_outbox_dead_lettered",
            "Notifications that nobody tries to deliver any more.",
            multiprocess_mode="mostrecent",
            registry=registry,
        )
        self.outbox_oldest_seconds = Gauge(
            "usersvc_outbox_oldest_age_seconds",
            "How long ago the person registered who has waited longest to be told, limits on mails aside; "
            "0 when nobody waits.",
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
            # There from the beginning, so that the first one is seen as an increase.
            self.outbox_answers.labels(outcome)
        # Looking up labels takes longer than counting.
        self._storage_seconds_of = cache(self.storage_seconds.labels)
        self._asked: asyncio.Task[OutboxState] | None = None
        self._of_request: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    def observe_request(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request.

        Args:
            method: as it came.
            route: the template of its path, of which there are few; never the path.
            status: of the answer.
            seconds: from its head to its answer.
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
        """All figures in Prometheus' text format 0.0.4; those of the outbox as they are now, NaN if nobody can tell."""
        waited = pending = dead_lettered = nan
        # Without the storage's answer, the other figures are needed most.
        with suppress(StorageUnavailable):
            state = await self._state_of(outbox)
            waited = 0.0 if state.oldest is None else max(0.0, (utc_now() - state.oldest).total_seconds())
            pending = nan if state.pending is None else state.pending
            dead_lettered = nan if state.dead_lettered is None else state.dead_lettered
        self.outbox_oldest_seconds.set(waited)
        self.outbox_pending.set(pending)
        self.outbox_set_aside.set(dead_lettered)
        if self._shared is None:
            return generate_latest(self._registry)
        _forget_the_dead(Path(self._shared))
        everybodys = CollectorRegistry()
        MultiProcessCollector(everybodys, self._shared)  # type: ignore[no-untyped-call]  # the library's
        return generate_latest(everybodys)

    async def _state_of(self, outbox: Outbox) -> OutboxState:
        """What the outbox tells, asked once for all who want to know meanwhile: it may have to count for long."""
        if self._asked is None or self._asked.done():
            self._asked = asyncio.create_task(outbox.state())
        return await asyncio.shield(self._asked)

    @contextmanager
    def storage_call(self, operation: str) -> Iterator[None]:
        """Time what happens within, and count its failure, or what it tells of a delivery."""
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
        """Time what happens within, and count its refusal."""
        began = time.perf_counter()
        self.hashing_pending.inc()
        try:
            with self.refusals():
                yield
            self.hashing_seconds.labels(operation).observe(time.perf_counter() - began)
        finally:
            self.hashing_pending.dec()

    @contextmanager
    def notification(self, _operation: str) -> Iterator[None]:
        """Measure the time of the call, however it ends."""
        with self.notification_seconds.time():
            yield

    @contextmanager
    def refusals(self) -> Iterator[None]:
        """Count what is refused within for want of room."""
        try:
            yield
        except QueueFull:
            self.hashing_refused.inc()
            raise


def begin_anew(directory: Path) -> None:
    """Forget what processes that have ended have counted there: before the first of a run counts, all that did before.

    Else the first of this run that has the number of one of an earlier run would go on from its figures.

    Raises:
        OSError: it is no folder, or nothing can be made there.
    """
    with TemporaryFile(dir=directory):
        pass
    for file, pid in _files(directory):
        if pid == os.getpid() or not _lives(pid):
            file.unlink(missing_ok=True)


def _forget_the_dead(directory: Path) -> None:
    """Take what processes that have ended said of themselves out of the sums; what they counted stays."""
    for file, pid in _files(directory):
        if file.name.startswith("gauge_live") and not _lives(pid):
            # Another process may have been quicker.
            file.unlink(missing_ok=True)


def _files(directory: Path) -> Iterator[tuple[Path, int]]:
    """The library's files, and whose they are."""
    for file in directory.iterdir():
        if found := _FILE.fullmatch(file.name):
            yield file, int(found["pid"])


def _lives(pid: int) -> bool:
    if sys.platform == "win32":
        # There the signal 0 is Ctrl-C, and nobody is to be stopped.
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        # It is somebody else's.
        return True
    return True
