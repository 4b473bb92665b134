"""The threads that hash: so many at once, so many who wait, nobody lost, and nothing done for those who have gone."""

import asyncio
import gc
import os
import sys
import threading
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usersvc.adapters.bcrypt.executor import NICENESS, BoundedExecutor
from usersvc.application.errors import QueueFull

DEADLINE = 10.0
"""Seconds after which something that should have happened is taken for never happening."""


class Work:
    """Jobs that run until they are let go, and a record of what ran."""

    def __init__(self) -> None:
        self.began: list[int] = []
        self.at_once = 0
        self.most_at_once = 0
        self._gate = threading.Semaphore(0)
        self._changed = threading.Condition()

    def job(self, number: int) -> Callable[[], int]:
        def run() -> int:
            with self._changed:
                self.began.append(number)
                self.at_once += 1
                self.most_at_once = max(self.most_at_once, self.at_once)
                self._changed.notify_all()
            assert self._gate.acquire(timeout=DEADLINE)
            with self._changed:
                self.at_once -= 1
            return number

        return run

    def let_go(self, jobs: int) -> None:
        self._gate.release(jobs)

    async def have_begun(self, jobs: int) -> None:
        """Wait until so many jobs have begun."""

        def wait() -> None:
            with self._changed:
                assert self._changed.wait_for(lambda: len(self.began) >= jobs, DEADLINE)

        await asyncio.to_thread(wait)


@asynccontextmanager
async def executor(*, workers: int, queue: int, expected: float = 0.1) -> AsyncIterator[BoundedExecutor]:
    made = BoundedExecutor(workers=workers, queue=queue, expected=expected)
    try:
        yield made
    finally:
        made.close()


async def handed_in(executor: BoundedExecutor, work: Work, numbers: range) -> list[asyncio.Task[int]]:
    """Tasks that have been taken, or refused, by the time that this returns."""
    tasks = [asyncio.create_task(executor.run(work.job(number))) for number in numbers]
    await asyncio.sleep(0)
    return tasks


async def refused(task: asyncio.Task[int]) -> bool:
    try:
        await task
    except QueueFull:
        return True
    return False


async def test_what_a_job_gives_or_raises_is_given_and_raised() -> None:
    async with executor(workers=1, queue=1) as threads:
        assert await threads.run(lambda: 42) == 42
        with pytest.raises(ZeroDivisionError):
            await threads.run(lambda: 1 // 0)
        assert await threads.run(threading.get_ident) != threading.get_ident()


async def test_more_than_there_is_room_for_are_refused_at_once_and_the_others_served_in_order() -> None:
    work = Work()
    async with executor(workers=1, queue=3) as threads:
        tasks = await handed_in(threads, work, range(6))
        assert [task.done() for task in tasks] == [False] * 4 + [True] * 2
        assert [await refused(task) for task in tasks[4:]] == [True, True]
        work.let_go(4)
        assert await asyncio.gather(*tasks[:4]) == [0, 1, 2, 3]
    assert work.began == [0, 1, 2, 3]


async def test_without_a_queue_only_what_a_thread_is_free_for_is_taken() -> None:
    work = Work()
    async with executor(workers=2, queue=0) as threads:
        tasks = await handed_in(threads, work, range(3))
        assert await refused(tasks[2])
        work.let_go(2)
        await asyncio.gather(*tasks[:2])
        # Whoever hears of an outcome finds the thread free.
        for _ in range(200):
            await threads.run(lambda: None)


async def test_who_goes_while_waiting_frees_the_place_at_once_and_the_job_never_runs() -> None:
    work = Work()
    async with executor(workers=1, queue=2) as threads:
        tasks = await handed_in(threads, work, range(3))
        with pytest.raises(QueueFull):
            threads.check_capacity()
        tasks[1].cancel()
        await asyncio.wait([tasks[1]])
        threads.check_capacity()
        [late] = await handed_in(threads, work, range(3, 4))
        work.let_go(3)
        assert await asyncio.gather(*[tasks[0], tasks[2], late]) == [0, 2, 3]
    assert work.began == [0, 2, 3]


async def test_a_cancelled_job_keeps_nothing_of_its_work_in_the_queue() -> None:
    class Password:
        def __call__(self) -> None: ...

    async with executor(workers=1, queue=1) as threads:
        work = Work()
        [running] = await handed_in(threads, work, range(1))
        await work.have_begun(1)
        password = Password()
        waiting = asyncio.create_task(threads.run(password))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        kept = weakref.ref(password)
        del password, waiting
        gc.collect()
        assert kept() is None
        work.let_go(1)
        await running


async def test_who_goes_while_the_job_runs_leaves_the_thread_its_place() -> None:
    work = Work()
    async with executor(workers=1, queue=0) as threads:
        [task] = await handed_in(threads, work, range(1))
        await work.have_begun(1)
        task.cancel()
        await asyncio.wait([task])
        with pytest.raises(QueueFull):
            threads.check_capacity()
        work.let_go(1)
        await until(lambda: has_room(threads))
        assert await threads.run(lambda: 7) == 7


async def test_it_works_after_a_storm_of_people_who_go() -> None:
    work = Work()
    async with executor(workers=2, queue=8) as threads:
        first = await handed_in(threads, work, range(2))
        await work.have_begun(2)
        for _ in range(500):
            waiting = await handed_in(threads, work, range(100, 108))
            assert not has_room(threads)
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
        last = await handed_in(threads, work, range(2, 10))
        work.let_go(10)
        assert await asyncio.gather(*first, *last) == list(range(10))
    assert sorted(work.began) == list(range(10))


async def test_closing_cancels_what_waits_and_lets_what_runs_end() -> None:
    work = Work()
    async with executor(workers=1, queue=2) as threads:
        running, *waiting = await handed_in(threads, work, range(3))
        await work.have_begun(1)
    done, _ = await asyncio.wait(waiting, timeout=DEADLINE)
    assert all(task.cancelled() for task in done)
    assert len(done) == 2
    work.let_go(1)
    assert await running == 0
    assert work.began == [0]
    with pytest.raises(RuntimeError, match="shutdown"):
        await threads.run(lambda: None)


async def test_a_loop_that_is_closed_meanwhile_harms_nobody() -> None:
    work = Work()
    threads = BoundedExecutor(workers=1, queue=1, expected=1)

    def in_a_loop_of_its_own() -> None:
        async def go() -> None:
            await handed_in(threads, work, range(1))
            await work.have_begun(1)

        asyncio.run(go())

    await asyncio.to_thread(in_a_loop_of_its_own)
    work.let_go(1)
    assert await threads.run(lambda: "still there") == "still there"
    threads.close()


async def test_a_thread_that_cannot_be_started_costs_no_place(monkeypatch: pytest.MonkeyPatch) -> None:
    async with executor(workers=1, queue=0) as threads:
        with monkeypatch.context() as patched:

            def start(_: threading.Thread) -> None:
                raise RuntimeError("can't start new thread")

            patched.setattr(threading.Thread, "start", start)
            with pytest.raises(RuntimeError, match="can't start"):
                await threads.run(lambda: None)
        assert await threads.run(lambda: 1) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="threads have a priority of their own on Linux alone")
async def test_the_threads_step_back_behind_everything_else() -> None:
    async with executor(workers=1, queue=0) as threads:
        niceness = await threads.run(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id()))
    assert niceness == NICENESS
    assert os.getpriority(os.PRIO_PROCESS, 0) < NICENESS


class TestRetryAfter:
    @pytest.mark.parametrize(
        ("workers", "queue", "expected", "seconds"),
        [(1, 0, 0.25, 1), (2, 64, 0.25, 9), (2, 2, 4.0, 8), (4, 60, 0.001, 1)],
    )
    async def test_is_when_all_who_are_here_will_have_been_served(
        self, workers: int, queue: int, expected: float, seconds: int
    ) -> None:
        work = Work()
        async with executor(workers=workers, queue=queue, expected=expected) as threads:
            tasks = await handed_in(threads, work, range(workers + queue))
            with pytest.raises(QueueFull) as overloaded:
                threads.check_capacity()
            assert overloaded.value.retry_after == seconds
            work.let_go(workers + queue)
            await asyncio.gather(*tasks)

    async def test_follows_what_jobs_have_taken_lately(self, monkeypatch: pytest.MonkeyPatch) -> None:
        time = [0.0]

        def lasting(seconds: float) -> None:
            time[0] += seconds

        monkeypatch.setattr("time.perf_counter", lambda: time[0])
        async with executor(workers=1, queue=0, expected=1000) as threads:

            async def told() -> int:
                work = Work()
                [task] = await handed_in(threads, work, range(1))
                with pytest.raises(QueueFull) as overloaded:
                    threads.check_capacity()
                task.cancel()
                work.let_go(1)
                await until(lambda: has_room(threads))
                return overloaded.value.retry_after

            assert await told() == 1000
            # The first that is measured counts alone, whatever was expected.
            assert await told() == 1
            for _ in range(30):
                await threads.run(lambda: lasting(10))
            assert await told() == 10


def has_room(threads: BoundedExecutor) -> bool:
    with suppress(QueueFull):
        threads.check_capacity()
        return True
    return False


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what only a thread knows."""
    async with asyncio.timeout(DEADLINE):
        while not condition():  # noqa: ASYNC110  # a thread that is done tells nobody
            await asyncio.sleep(0.001)


@settings(max_examples=60, deadline=None)
@given(
    workers=st.integers(1, 4),
    queue=st.integers(0, 6),
    steps=st.lists(st.one_of(st.just("come"), st.just("end"), st.integers(0, 30)), max_size=40),
)
def test_whatever_comes_goes_and_ends_nothing_is_lost_and_no_limit_passed(
    workers: int, queue: int, steps: list[str | int]
) -> None:
    async def play() -> None:
        work = Work()
        async with executor(workers=workers, queue=queue) as threads:
            tasks: list[asyncio.Task[int]] = []
            gone: set[int] = set()
            ended = 0
            for step in steps:
                if step == "come":
                    unanswered = sum(not task.done() for task in tasks)
                    tasks += await handed_in(threads, work, range(len(tasks), len(tasks) + 1))
                    if unanswered >= workers + queue and not ended:
                        assert tasks[-1].done()
                elif step == "end":
                    work.let_go(1)
                    ended += 1
                elif isinstance(step, int) and step < len(tasks) and not tasks[step].done():
                    tasks[step].cancel()
                    gone.add(step)
                    await asyncio.wait([tasks[step]])
                # Of those that may end, this loop has perhaps not heard yet that they did.
                assert sum(not task.done() for task in tasks) <= workers + queue + ended
            work.let_go(len(tasks) + 1)
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert work.most_at_once <= workers
        assert len(work.began) == len(set(work.began))
        for number, outcome in enumerate(outcomes):
            if isinstance(outcome, QueueFull):
                assert number not in work.began
                assert outcome.retry_after >= 1
            elif isinstance(outcome, asyncio.CancelledError):
                assert number in gone
            else:
                assert outcome == number

    asyncio.run(play())
