"""A thread pool of low priority with a bounded queue, for work that only computes."""

import asyncio
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from usersvc.application.errors import QueueFull

T = TypeVar("T")

NICENESS = 19
"""The lowest priority: the event loop's thread goes first whenever it has something to do."""

_WEIGHT_OF_LAST = 0.2  # in the moving average of the time that a job takes


class BoundedExecutor:
    """Runs jobs in threads, in the order of their arrival, and rejects jobs beyond its capacity.

    At most ``workers`` jobs run and at most ``queue`` more wait. Cancelling a waiting job frees its slot at once, and
    the job never runs; a running job cannot be stopped and keeps its slot to its end.
    """

    def __init__(self, *, workers: int, queue: int, expected: float) -> None:
        """Make an executor; its threads start when they are needed.

        Args:
            workers: the number of jobs that run at once.
            queue: how many jobs may wait.
            expected: how long a job takes, in seconds, until one was measured.
        """
        self._workers = workers
        self._capacity = workers + queue
        self._pending = 0
        self._mean, self._is_measured = expected, False
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="bcrypt", initializer=_lower_priority)

    async def run(self, work: Callable[[], T]) -> T:
        """Run a job in a thread; returns or raises what it does.

        Raises:
            QueueFull: no slot is free; at once.
            RuntimeError: the executor is closed, or the system has no thread.
            asyncio.CancelledError: the executor was closed before the job began.
        """
        with self._lock:
            self._check_capacity()
            self._pending += 1
        job = [work]

        def release(_: object = None) -> None:
            # A cancelled job stays in the queue until a thread comes to it, but without its password.
            job.clear()
            with self._lock:
                self._pending -= 1

        try:
            future = self._threads.submit(self._measured, job)
        except BaseException:
            release()
            raise
        # Before wrap_future adds its own callback: the slot is free when the caller learns of the result.
        future.add_done_callback(release)
        return await asyncio.wrap_future(future)

    def check_capacity(self) -> None:
        """Return if a job would be accepted now.

        Raises:
            QueueFull: no slot is free.
        """
        with self._lock:
            self._check_capacity()

    def close(self) -> None:
        """Accept no more jobs and cancel those that wait. Running jobs are not awaited."""
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _check_capacity(self) -> None:
        if self._pending >= self._capacity:
            # The time until all present jobs are done: a slot is free earlier, but others compete for it.
            raise QueueFull(max(1, math.ceil(self._pending * self._mean / self._workers)))

    def _measured(self, job: list[Callable[[], T]]) -> T:
        work = job.pop()
        began = time.perf_counter()
        try:
            return work()
        finally:
            seconds = time.perf_counter() - began
            with self._lock:
                self._mean += (seconds - self._mean) * (_WEIGHT_OF_LAST if self._is_measured else 1)
                self._is_measured = True


def _lower_priority() -> None:
    # Elsewhere the call would change the whole process.
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
