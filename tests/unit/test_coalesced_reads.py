"""Coalesced reads, on a store that answers when a test lets it."""

import asyncio
import sqlite3
from collections.abc import Sequence
from typing import Any

import pytest

from tests.fake_time import in_fake_time
from usersvc.adapters.sqlite.coalesced_reads import MAX_BATCH, CoalescedReads
from usersvc.adapters.sqlite.database import CALL_TIMEOUT
from usersvc.application.errors import StorageUnavailable
from usersvc.application.request_context import RequestContext, request_context

DOUBLE = "SELECT 2 * ?"
NEGATIVE = "SELECT -?"


class Store:
    """Runs statements in SQLite, one at a time, once ``may_answer`` is set."""

    def __init__(self) -> None:
        self.asked: list[list[int | str]] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.failure: Exception | None = None
        self.running = 0

    async def read(self, statement: str, values: Sequence[int | str]) -> list[Any]:
        self.running += 1
        assert self.running == 1
        try:
            self.asked.append(list(values))
            await self.may_answer.wait()
            if self.failure is not None and "bad" in values:
                if isinstance(self.failure, sqlite3.Error):
                    raise StorageUnavailable("cannot read: it is damaged") from self.failure
                raise self.failure
            connection = sqlite3.connect(":memory:")
            try:
                return connection.execute(statement, values).fetchall()
            finally:
                connection.close()
        finally:
            self.running -= 1


async def begun(*reads: "asyncio.Task[Any]") -> None:
    """Wait until each of them has been requested."""
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not any(read.done() for read in reads)


def ask(reads: CoalescedReads, query: str, *values: int | str) -> "asyncio.Task[Any]":
    return asyncio.create_task(reads.value(query, values))


async def test_a_single_request_is_read_immediately_and_not_cached() -> None:
    store = Store()
    reads = CoalescedReads(store.read)
    assert [await reads.value(DOUBLE, [1]), await reads.value(DOUBLE, [1])] == [2, 2]
    assert store.asked == [[1], [1]]


async def test_requests_during_a_query_are_answered_by_combined_queries() -> None:
    store = Store()
    reads = CoalescedReads(store.read)
    store.may_answer.clear()
    first = ask(reads, DOUBLE, 0)
    await begun(first)
    others = [ask(reads, DOUBLE, number) for number in range(1, MAX_BATCH + 3)]
    await begun(first, *others)
    store.may_answer.set()
    assert await asyncio.gather(first, *others) == [2 * number for number in range(MAX_BATCH + 3)]
    assert store.asked == [[0], list(range(1, MAX_BATCH + 1)), [MAX_BATCH + 1, MAX_BATCH + 2]]


async def test_different_queries_are_not_combined() -> None:
    store = Store()
    reads = CoalescedReads(store.read)
    found = await asyncio.gather(*(ask(reads, DOUBLE if number % 2 else NEGATIVE, number) for number in range(6)))
    assert found == [0, 2, -2, 6, -4, 10]
    assert store.asked == [[0, 2, 4], [1, 3, 5]]


async def test_cancelled_requests_are_not_read_and_the_others_are_answered() -> None:
    store = Store()
    reads = CoalescedReads(store.read)
    store.may_answer.clear()
    gone, stays, waits_and_goes, waits = (ask(reads, DOUBLE, number) for number in range(4))
    await begun(gone, stays)
    assert store.asked == [[0, 1, 2, 3]]
    gone.cancel()
    late, too_late = ask(reads, DOUBLE, 4), ask(reads, DOUBLE, 5)
    await begun(stays)
    waits_and_goes.cancel()
    late.cancel()
    store.may_answer.set()
    found: list[object] = await asyncio.gather(stays, waits, too_late)
    assert found == [2, 6, 10]
    assert store.asked == [[0, 1, 2, 3], [5]]
    assert gone.cancelled()
    assert late.cancelled()


async def test_a_request_is_answered_after_all_earlier_ones_were_cancelled() -> None:
    store = Store()
    reads = CoalescedReads(store.read)
    store.may_answer.clear()
    first = ask(reads, DOUBLE, 1)
    await begun(first)
    second = ask(reads, DOUBLE, 2)
    await begun(second)
    first.cancel()
    second.cancel()
    store.may_answer.set()
    await asyncio.wait([first, second])
    assert await reads.value(DOUBLE, [3]) == 6
    assert store.asked == [[1], [3]]


async def test_a_damaged_page_fails_only_the_request_that_reads_it() -> None:
    store = Store()
    store.failure = sqlite3.DatabaseError("malformed")
    reads = CoalescedReads(store.read)
    asked = [ask(reads, DOUBLE, value) for value in (1, "bad", 3)]
    one, bad, three = await asyncio.gather(*asked, return_exceptions=True)
    assert [one, three] == [2, 6]
    assert isinstance(bad, StorageUnavailable)
    assert isinstance(bad.__cause__, sqlite3.DatabaseError)


async def test_an_unexpected_error_fails_only_the_request_that_causes_it() -> None:
    store = Store()
    store.failure = ValueError("a value that cannot be stored")
    reads = CoalescedReads(store.read)
    asked = [ask(reads, DOUBLE, value) for value in (1, "bad", 3)]
    asked.append(ask(reads, NEGATIVE, 4))
    one, bad, three, four = await asyncio.gather(*asked, return_exceptions=True)
    assert [one, three, four] == [2, 6, -4]
    assert bad is store.failure
    assert await reads.value(DOUBLE, [5]) == 10


async def test_a_cancelled_request_does_not_hide_a_failure_from_the_others() -> None:
    may_fail = asyncio.Event()

    async def missing(*_: object) -> list[Any]:
        await may_fail.wait()
        raise StorageUnavailable("cannot read: the database file is gone")

    reads = CoalescedReads(missing)
    asked = [ask(reads, DOUBLE, number) for number in range(5)]
    await begun(*asked)
    asked[2].cancel()
    may_fail.set()
    await asyncio.wait(asked)
    assert asked.pop(2).cancelled()
    assert [str(read.exception()) for read in asked] == ["cannot read: the database file is gone"] * 4


async def test_queries_run_in_an_empty_context() -> None:
    seen: list[RequestContext | None] = []

    async def read(*_: object) -> list[Any]:
        seen.append(request_context.get())
        return [(1,)]

    request_context.set(RequestContext("the-first-request", None))
    assert await CoalescedReads(read).value(DOUBLE, [1]) == 1
    assert seen == [None]


async def test_each_request_gets_an_exception_object_of_its_own() -> None:
    async def missing(*_: object) -> list[Any]:
        raise StorageUnavailable("cannot read: the database file is gone")

    reads = CoalescedReads(missing)
    errors = await asyncio.gather(*(ask(reads, DOUBLE, number) for number in range(3)), return_exceptions=True)
    assert [str(error) for error in errors] == ["cannot read: the database file is gone"] * 3
    assert len(set(map(id, errors))) == 3


@in_fake_time
async def test_each_request_times_out_by_itself() -> None:
    loop = asyncio.get_running_loop()
    store = Store()
    store.may_answer.clear()
    reads = CoalescedReads(store.read)

    async def wait(query: str, seconds: float) -> float:
        await asyncio.sleep(seconds)
        began = loop.time()
        with pytest.raises(StorageUnavailable, match="no answer in time"):
            await reads.value(query, [1])
        return loop.time() - began

    waited = await asyncio.gather(
        *(wait(query, seconds) for query in (DOUBLE, NEGATIVE) for seconds in (0, 1, 1, 3, CALL_TIMEOUT + 1))
    )
    assert max(waited) <= CALL_TIMEOUT + 0.001
    store.may_answer.set()
    assert await reads.value(DOUBLE, [4]) == 8


@in_fake_time
async def test_repeating_failed_queries_extends_no_timeout() -> None:
    loop = asyncio.get_running_loop()

    async def slow_and_damaged(*_: object) -> list[Any]:
        await asyncio.sleep(CALL_TIMEOUT / 2)
        raise StorageUnavailable("cannot read: it is damaged") from sqlite3.DatabaseError("malformed")

    reads = CoalescedReads(slow_and_damaged)

    async def wait(query: str) -> float:
        began = loop.time()
        with pytest.raises(StorageUnavailable):
            await reads.value(query, [1])
        return loop.time() - began

    waited = await asyncio.gather(*(wait(query) for query in (DOUBLE, DOUBLE, DOUBLE, NEGATIVE, NEGATIVE)))
    assert max(waited) <= CALL_TIMEOUT + 0.001


@in_fake_time
async def test_a_request_is_answered_after_an_earlier_one_of_its_batch_timed_out() -> None:
    store = Store()

    async def slow(statement: str, values: Sequence[int | str]) -> list[Any]:
        await asyncio.sleep(CALL_TIMEOUT * 3 / 4)
        return await store.read(statement, values)

    reads = CoalescedReads(slow)
    running = ask(reads, NEGATIVE, 0)
    await asyncio.sleep(CALL_TIMEOUT / 8)
    earlier = ask(reads, DOUBLE, 1)
    await asyncio.sleep(CALL_TIMEOUT / 2)
    later = ask(reads, DOUBLE, 2)
    assert await running == 0
    with pytest.raises(StorageUnavailable, match="no answer in time"):
        await earlier
    assert await later == 4
    assert store.asked == [[0], [1, 2]]


async def test_cancelling_the_task_cancels_all_requests() -> None:
    store = Store()
    store.may_answer.clear()
    reads = CoalescedReads(store.read)
    first = ask(reads, DOUBLE, 1)
    await begun(first)
    second = ask(reads, DOUBLE, 2)
    await begun(second)
    [task] = asyncio.all_tasks() - {asyncio.current_task(), first, second}
    task.cancel()
    await asyncio.wait([first, second], timeout=5)
    assert first.cancelled()
    assert second.cancelled()
