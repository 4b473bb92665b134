"""Threads for work that is all computing: so much at once, so many who wait, and no more."""

import asyncio
import math
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TypeVar

from usersvc.application.ports import HashingOverloaded

T = TypeVar("T")

NICENESS = 19
"""The lowest priority: whenever the event loop has something to do, it goes before what is computed."""

_NEWEST = 0.2  # the share that the last job has in the mean


class _Job:
    """A piece of work, and where its result is awaited."""

    __slots__ = ("_answer", "_loop", "_work")

    def __init__(self, work: Callable[[], object], answer: "asyncio.Future[object]") -> None:
        self._work = work
        self._answer = answer
        self._loop = answer.get_loop()

    def do(self) -> Callable[[], None]:
        """Do the work in this thread; gives what then tells of its outcome. Nothing is raised."""
        try:
            return partial(self._give, self._work())
        except BaseException as error:
            return partial(self._fail, error)

    def tell(self, outcome: Callable[[], None]) -> None:
        """Have the event loop tell whoever waits."""
        # The loop may be closed: then nobody waits any more.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(outcome)

    def _give(self, result: object) -> None:
        if not self._answer.done():
            self._answer.set_result(result)

    def _fail(self, error: BaseException) -> None:
        if not self._answer.done():
            self._answer.set_exception(error)

    def cancel(self) -> None:
        """Have whoever waits wait no longer."""
        self._answer.cancel()


class BoundedExecutor:
    """Runs jobs in threads of low priority, in the order in which they came, and refuses those that find no room.

    At most ``workers`` jobs run and at most ``queue`` more wait. Who stops waiting (is cancelled) gives up the place at
    once, and the job never runs; one that runs already cannot be stopped, and its place is the thread's to the end.
    """

    def __init__(self, *, workers: int, queue: int, expected: float) -> None:
        """Make an executor; its threads start when they are needed.

        Args:
            workers: how many jobs run at once.
            queue: how many jobs may wait; 0 means that only what a thread is free for is taken.
            expected: how long a job takes, in seconds, for as long as none has been measured.
        """
        self._workers = workers
        self._places = workers + queue
        self._mean = expected
        self._measured = False
        # Of all that follows; never held for longer than it takes to look and to count.
        self._lock = threading.Lock()
        # Ordered, and yet quick to take one out of the middle.
        self._waiting: OrderedDict[_Job, None] = OrderedDict()
        self._running = 0
        self._at_work = 0
        self._closed = False
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="bcrypt", initializer=_step_back)

    async def run(self, work: Callable[[], T]) -> T:
        """Do some work in a thread, and give what it gives or raise what it raises.

        Raises:
            HashingOverloaded: there is no room; at once.
            RuntimeError: the executor is closed.
            asyncio.CancelledError: the executor was closed before the work had begun.
        """
        answer: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        job = _Job(work, answer)  # type: ignore[arg-type]  # a future is invariant, and this one gets what work gives
        with self._lock:
            if self._closed:
                raise RuntimeError("the executor is closed")
            self._refuse_if_full()
            self._waiting[job] = None
            begin = self._at_work < self._workers
            if begin:
                self._at_work += 1
        if begin:
            self._begin(job)
        try:
            return await answer
        except asyncio.CancelledError:
            with self._lock:
                self._waiting.pop(job, None)
            raise

    def check_room(self) -> None:
        """Return if a job would be taken just now.

        Raises:
            HashingOverloaded: it would not.
        """
        with self._lock:
            self._refuse_if_full()

    def close(self) -> None:
        """Take nothing any more, and cancel what waits. What runs ends by itself; nobody waits for that here."""
        with self._lock:
            self._closed = True
            waiting, self._waiting = self._waiting, OrderedDict()
        for job in waiting:
            job.cancel()
        self._threads.shutdown(wait=False)

    def _refuse_if_full(self) -> None:
        taken = self._running + len(self._waiting)
        if taken >= self._places:
            # When all who are here now have been served: earlier there may be room, but then it is contended for.
            raise HashingOverloaded(max(1, math.ceil(taken * self._mean / self._workers)))

    def _begin(self, job: _Job) -> None:
        try:
            self._threads.submit(self._work)
        except BaseException:
            # The system has no thread for us.
            with self._lock:
                self._at_work -= 1
                self._waiting.pop(job, None)
            raise

    def _work(self) -> None:
        """Take jobs, in a thread, until none waits."""
        while (job := self._next()) is not None:
            began = time.perf_counter()
            outcome = job.do()
            # First of all there is room again: whoever hears of the outcome may come back at once.
            self._ran_for(time.perf_counter() - began)
            job.tell(outcome)
            # Not kept until the next one comes: it has a password.
            del job, outcome

    def _next(self) -> _Job | None:
        with self._lock:
            if not self._waiting:
                self._at_work -= 1
                return None
            job, _ = self._waiting.popitem(last=False)
            self._running += 1
            return job

    def _ran_for(self, seconds: float) -> None:
        with self._lock:
            self._running -= 1
            self._mean += (seconds - self._mean) * (_NEWEST if self._measured else 1)
            self._measured = True


def _step_back() -> None:
    """Give this thread the lowest priority, where threads have one of their own."""
    # Elsewhere the call means a whole process.
    if sys.platform == "linux":
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
