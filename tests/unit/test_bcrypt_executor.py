"""The threads that hash: bounded, in order, and without work for callers that were cancelled."""

import asyncio
import gc
import os
import sys
import threading
import weakref
from collections.abc import Callable
from contextlib import closing

import pytest

from usersvc.adapters.bcrypt.executor import NICENESS, BoundedExecutor
from usersvc.application.errors import QueueFull

DEADLINE = 10.0
"""Seconds after which a wait has failed."""


class Work:
    """Jobs that run until they are released, and a record of which ran."""

    def __init__(self) -> None:
        self.began: list[int] = []
        self._has_begun = threading.Event()
        self._gate = threading.Semaphore(0)

    def job(self, number: int) -> Callable[[], int]:
        def run() -> int:
            self.began.append(number)
            self._has_begun.set()
            assert self._gate.acquire(timeout=DEADLINE)
            return number

        return run

    def release(self, jobs: int) -> None:
        self._gate.release(jobs)

    async def first_began(self) -> None:
        assert await asyncio.to_thread(self._has_begun.wait, DEADLINE)


def executor_of(workers: int, queue: int, job_seconds: float = 0.1) -> closing[BoundedExecutor]:
    return closing(BoundedExecutor(workers=workers, queue=queue, job_seconds=job_seconds))


async def submitted(threads: BoundedExecutor, work: Work, numbers: range) -> list[asyncio.Task[int]]:
    """Tasks that have been accepted or rejected when this returns."""
    tasks = [asyncio.create_task(threads.run(work.job(number))) for number in numbers]
    await asyncio.sleep(0)
    return tasks


async def cancel(task: asyncio.Task[int]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def test_a_job_runs_in_a_thread_and_its_result_or_error_is_passed_on() -> None:
    with executor_of(workers=1, queue=0) as threads:
        # Also a slot is free as soon as a result or error is received.
        for _ in range(100):
            assert await threads.run(lambda: 42) == 42
            with pytest.raises(ZeroDivisionError):
                await threads.run(lambda: 1 // 0)
        assert await threads.run(threading.get_ident) != threading.get_ident()


@pytest.mark.parametrize(("workers", "queue"), [(1, 3), (2, 2), (4, 0)])
async def test_jobs_beyond_the_capacity_are_rejected_at_once_and_the_others_run_in_order(
    workers: int, queue: int
) -> None:
    work = Work()
    with executor_of(workers, queue) as threads:
        tasks = await submitted(threads, work, range(6))
        assert [task.done() for task in tasks] == [False] * 4 + [True] * 2
        assert [type(task.exception()) for task in tasks[4:]] == [QueueFull, QueueFull]
        await work.first_began()
        assert len(work.began) <= workers
        work.release(4)
        assert await asyncio.gather(*tasks[:4]) == [0, 1, 2, 3]
    assert sorted(work.began) == [0, 1, 2, 3]
    assert workers > 1 or work.began == [0, 1, 2, 3]


async def test_cancelling_a_waiting_job_frees_its_slot_at_once_and_it_never_runs() -> None:
    work = Work()
    with executor_of(workers=1, queue=2) as threads:
        tasks = await submitted(threads, work, range(3))
        await cancel(tasks[1])
        accepted, rejected = await submitted(threads, work, range(3, 5))
        work.release(3)
        assert await asyncio.gather(*tasks[::2], accepted) == [0, 2, 3]
        assert isinstance(rejected.exception(), QueueFull)
        # The cancelled job did not free a second slot when a thread took it.
        tasks = await submitted(threads, work, range(5, 9))
        assert [task.done() for task in tasks] == [False] * 3 + [True]
        assert isinstance(tasks.pop().exception(), QueueFull)
        work.release(3)
        await asyncio.gather(*tasks)
    assert work.began == [0, 2, 3, 5, 6, 7]


async def test_a_cancelled_job_keeps_no_reference_to_its_work() -> None:
    class Password:
        def __call__(self) -> int:
            return 0

    work = Work()
    with executor_of(workers=1, queue=1) as threads:
        [running] = await submitted(threads, work, range(1))
        await work.first_began()
        password = Password()
        waiting = asyncio.create_task(threads.run(password))
        await asyncio.sleep(0)
        await cancel(waiting)
        kept = weakref.ref(password)
        del password, waiting
        gc.collect()
        assert kept() is None
        work.release(1)
        await running


async def test_a_cancelled_job_that_runs_keeps_its_slot_to_its_end() -> None:
    work = Work()
    with executor_of(workers=1, queue=0) as threads:
        [task] = await submitted(threads, work, range(1))
        await work.first_began()
        await cancel(task)
        with pytest.raises(QueueFull):
            await threads.run(lambda: None)
        work.release(1)
        async with asyncio.timeout(DEADLINE):
            while True:
                try:
                    return await threads.run(lambda: None)
                except QueueFull:
                    await asyncio.sleep(0.001)


async def test_closing_cancels_waiting_jobs_and_lets_running_ones_end() -> None:
    work = Work()
    with executor_of(workers=1, queue=2) as threads:
        running, *waiting = await submitted(threads, work, range(3))
        await work.first_began()
    await asyncio.wait(waiting, timeout=DEADLINE)
    assert all(task.cancelled() for task in waiting)
    work.release(1)
    assert await running == 0
    assert work.began == [0]
    with pytest.raises(RuntimeError, match="shutdown"):
        await threads.run(lambda: None)


async def test_a_job_whose_loop_was_closed_does_not_stop_the_thread() -> None:
    work = Work()

    async def submit() -> None:
        await submitted(threads, work, range(1))
        await work.first_began()

    with executor_of(workers=1, queue=1) as threads:
        await asyncio.to_thread(asyncio.run, submit())
        work.release(1)
        assert await threads.run(lambda: 1) == 1


async def test_a_thread_that_cannot_be_started_occupies_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with executor_of(workers=1, queue=0) as threads:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", start)
            with pytest.raises(RuntimeError, match="can't start"):
                await threads.run(lambda: None)
        assert await threads.run(lambda: 1) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux do threads have a priority of their own")
async def test_the_threads_have_the_lowest_priority() -> None:
    with executor_of(workers=1, queue=0) as threads:
        niceness = await threads.run(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    assert niceness == NICENESS
    assert os.getpriority(os.PRIO_PROCESS, 0) < NICENESS


@pytest.mark.parametrize(
    ("workers", "queue", "job_seconds", "retry_after"), [(1, 0, 0.25, 1), (2, 64, 0.25, 9), (2, 2, 4.0, 8)]
)
async def test_retry_after_is_the_time_until_all_present_jobs_are_done(
    workers: int, queue: int, job_seconds: float, retry_after: int
) -> None:
    work = Work()
    with executor_of(workers, queue, job_seconds) as threads:
        *accepted, rejected = await submitted(threads, work, range(workers + queue + 1))
        assert getattr(rejected.exception(), "retry_after", None) == retry_after
        work.release(workers + queue)
        await asyncio.gather(*accepted)
