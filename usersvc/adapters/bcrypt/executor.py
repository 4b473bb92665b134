"""A thread pool of low priority with a bounded queue, for work that only computes."""

import asyncio
import math
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

from usersvc.application.errors import QueueFull

T = TypeVar("T")

NICENESS = 19
"""The lowest priority: the event loop's thread goes first whenever it has something to do."""


class BoundedExecutor:
    """Runs jobs in threads, in the order of their arrival, and rejects jobs beyond its capacity.

    At most ``workers`` jobs run and at most ``queue`` more wait. Cancelling a waiting job frees its slot at once, and
    the job never runs; a running job cannot be stopped and keeps its slot to its end.
    """

    def __init__(self, *, workers: int, queue: int, job_seconds: float) -> None:
        """Create an executor, without threads yet; ``job_seconds`` estimates how long a job takes."""
        self._slots = threading.Semaphore(workers + queue)
        # Until all jobs are done: a slot is free earlier, but others compete for it.
        self._retry_after = max(1, math.ceil((workers + queue) / workers * job_seconds))
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="bcrypt", initializer=_lower_priority)

    async def run(self, work: Callable[[], T]) -> T:
        """Run a job in a thread; returns or raises what it does.

        Raises:
            QueueFull: no slot is free; immediately.
            RuntimeError: the executor is closed, or the system cannot start a thread.
            asyncio.CancelledError: the executor was closed before the job began.
        """
        if not self._slots.acquire(blocking=False):
            raise QueueFull(self._retry_after)
        # A cancelled job stays in the queue until a thread takes it, but without its password.
        job = [work]

        def work_once() -> T:
            return job.pop()()

        def release(_: object = None) -> None:
            job.clear()
            self._slots.release()

        try:
            future = self._threads.submit(work_once)
        except BaseException:
            release()
            raise
        # Before wrap_future adds its own callback: the slot is free when the caller receives the result.
        future.add_done_callback(release)
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Accept no more jobs and cancel those that wait. Running jobs are not awaited."""
        self._threads.shutdown(wait=False, cancel_futures=True)


def _lower_priority() -> None:
    # Elsewhere the call would change the whole process.
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
