"""The threads that hash: bounded, in order, and without work for callers that were cancelled."""

import asyncio
import gc
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usersvc.adapters.bcrypt.executor import NICENESS, BoundedExecutor
from usersvc.application.errors import QueueFull

DEADLINE = 10.0
"""Seconds after which a wait has failed."""


class Work:
    """Jobs that run until they are released, and a record of which ran."""

    def __init__(self) -> None:
        self.began: list[int] = []
        self.most_at_once = self._at_once = 0
        self._gate = threading.Semaphore(0)
        self._changed = threading.Condition()

    def job(self, number: int) -> Callable[[], int]:
        def run() -> int:
            with self._changed:
                self.began.append(number)
                self._at_once += 1
                self.most_at_once = max(self.most_at_once, self._at_once)
                self._changed.notify_all()
            assert self._gate.acquire(timeout=DEADLINE)
            with self._changed:
                self._at_once -= 1
            return number

        return run

    def release(self, jobs: int) -> None:
        self._gate.release(jobs)

    async def first_began(self) -> None:
        def wait() -> None:
            with self._changed:
                assert self._changed.wait_for(lambda: self.began, DEADLINE)

        await asyncio.to_thread(wait)


@contextmanager
def executor(*, workers: int, queue: int, job_seconds: float = 0.1) -> Iterator[BoundedExecutor]:
    threads = BoundedExecutor(workers=workers, queue=queue, job_seconds=job_seconds)
    try:
        yield threads
    finally:
        threads.close()


async def submitted(threads: BoundedExecutor, work: Work, numbers: range) -> list[asyncio.Task[int]]:
    """Tasks that have been accepted or rejected when this returns."""
    tasks = [asyncio.create_task(threads.run(work.job(number))) for number in numbers]
    await asyncio.sleep(0)
    return tasks


async def cancel(task: asyncio.Task[int]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def test_a_job_runs_in_a_thread_and_its_result_or_error_is_passed_on() -> None:
    with executor(workers=1, queue=1) as threads:
        assert await threads.run(lambda: 42) == 42
        with pytest.raises(ZeroDivisionError):
            await threads.run(lambda: 1 // 0)
        assert await threads.run(threading.get_ident) != threading.get_ident()


async def test_jobs_beyond_the_capacity_are_rejected_at_once_and_the_others_run_in_order() -> None:
    work = Work()
    with executor(workers=1, queue=3) as threads:
        tasks = await submitted(threads, work, range(6))
        assert [task.done() for task in tasks] == [False] * 4 + [True] * 2
        assert [type(task.exception()) for task in tasks[4:]] == [QueueFull, QueueFull]
        work.release(4)
        assert await asyncio.gather(*tasks[:4]) == [0, 1, 2, 3]
    assert work.began == [0, 1, 2, 3]


async def test_a_slot_is_free_when_the_result_is_received() -> None:
    with executor(workers=1, queue=0) as threads:
        for _ in range(200):
            await threads.run(lambda: None)


async def test_cancelling_a_waiting_job_frees_its_slot_at_once_and_it_never_runs() -> None:
    work = Work()
    with executor(workers=1, queue=2) as threads:
        tasks = await submitted(threads, work, range(3))
        await cancel(tasks[1])
        tasks += await submitted(threads, work, range(3, 4))
        work.release(3)
        assert await asyncio.gather(*(task for task in tasks if not task.cancelled())) == [0, 2, 3]
    assert work.began == [0, 2, 3]


async def test_a_cancelled_job_keeps_no_reference_to_its_work() -> None:
    class Password:
        def __call__(self) -> int:
            return 0

    work = Work()
    with executor(workers=1, queue=1) as threads:
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
    with executor(workers=1, queue=0) as threads:
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
    with executor(workers=1, queue=2) as threads:
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

    with executor(workers=1, queue=1) as threads:
        await asyncio.to_thread(asyncio.run, submit())
        work.release(1)
        assert await threads.run(lambda: 1) == 1


async def test_a_thread_that_cannot_be_started_occupies_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with executor(workers=1, queue=0) as threads:
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", start)
            with pytest.raises(RuntimeError, match="can't start"):
                await threads.run(lambda: None)
        assert await threads.run(lambda: 1) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux do threads have a priority of their own")
async def test_the_threads_have_the_lowest_priority() -> None:
    with executor(workers=1, queue=0) as threads:
        niceness = await threads.run(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    assert niceness == NICENESS
    assert os.getpriority(os.PRIO_PROCESS, 0) < NICENESS


@pytest.mark.parametrize(
    ("workers", "queue", "job_seconds", "retry_after"),
    [(1, 0, 0.25, 1), (2, 64, 0.25, 9), (2, 2, 4.0, 8), (4, 60, 0.001, 1)],
)
async def test_retry_after_is_the_time_until_all_present_jobs_are_done(
    workers: int, queue: int, job_seconds: float, retry_after: int
) -> None:
    work = Work()
    with executor(workers=workers, queue=queue, job_seconds=job_seconds) as threads:
        tasks = await submitted(threads, work, range(workers + queue))
        with pytest.raises(QueueFull) as full:
            await threads.run(lambda: None)
        assert full.value.retry_after == retry_after
        work.release(workers + queue)
        await asyncio.gather(*tasks)


@settings(max_examples=60, deadline=None)
@given(
    workers=st.integers(1, 4),
    queue=st.integers(0, 6),
    steps=st.lists(st.one_of(st.just("submit"), st.just("end"), st.integers(0, 30)), max_size=40),
)
def test_no_job_is_lost_and_no_limit_exceeded(workers: int, queue: int, steps: list[str | int]) -> None:
    """A number among the steps cancels that job."""

    async def play() -> None:
        work = Work()
        with executor(workers=workers, queue=queue) as threads:
            tasks: list[asyncio.Task[int]] = []
            cancelled: set[int] = set()
            released = 0
            for step in steps:
                if step == "submit":
                    pending = sum(not task.done() for task in tasks)
                    tasks += await submitted(threads, work, range(len(tasks), len(tasks) + 1))
                    if pending >= workers + queue and not released:
                        assert tasks[-1].done()
                elif step == "end":
                    work.release(1)
                    released += 1
                elif isinstance(step, int) and step < len(tasks) and not tasks[step].done():
                    cancelled.add(step)
                    await cancel(tasks[step])
                # The loop may not know yet that released jobs have ended.
                assert sum(not task.done() for task in tasks) <= workers + queue + released
            work.release(len(tasks) + 1)
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert work.most_at_once <= workers
        assert len(work.began) == len(set(work.began))
        for number, result in enumerate(results):
            if isinstance(result, QueueFull):
                assert number not in work.began
            elif isinstance(result, asyncio.CancelledError):
                assert number in cancelled
            else:
                assert result == number

    asyncio.run(play())
