"""Coalesced reads on a real connection, which waits inside a query until the test lets it go on."""

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator
from typing import Any

import aiosqlite
import pytest

from usersvc.adapters.sqlite.coalesced_reads import MAX_BATCH, CoalescedReads


class Reads:
    """The reads, and a log of the values that reached the connection."""

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self.reads = CoalescedReads(connection)
        self.log: list[object] = []
        self.batches: list[int] = []
        self.has_begun, self.may_run = threading.Event(), threading.Event()
        self._run_batch = self.reads._run_batch
        self.reads._run_batch = self._count  # type: ignore[method-assign]  # counts the batches

    def log_value(self, value: Any) -> Any:
        self.log.append(value)
        self.has_begun.set()
        self.may_run.wait(10)
        if value == "bad":
            raise ValueError
        return value

    def _count(self, connection: sqlite3.Connection) -> Any:
        outcomes = self._run_batch(connection)
        self.batches.append(len(outcomes))
        return outcomes

    def ask(self, *values: object, query: str = "SELECT log(?)") -> list["asyncio.Task[list[Any]]"]:
        return [asyncio.create_task(self.reads.rows(query, [value])) for value in values]  # type: ignore[list-item]  # any value

    async def begun(self) -> None:
        """Wait until the thread runs a query, and no later request has reached it."""
        assert await asyncio.to_thread(self.has_begun.wait, 5)


@pytest.fixture
async def store() -> AsyncIterator[Reads]:
    async with aiosqlite.connect(":memory:") as connection:
        store = Reads(connection)
        await connection.create_function("log", 1, store.log_value)
        yield store
        store.may_run.set()


async def test_nothing_is_cached(store: Reads) -> None:
    store.may_run.set()
    assert [await store.reads.rows("SELECT log(?)", [1]) for _ in range(2)] == [[(1,)], [(1,)]]
    assert store.log == [1, 1]


async def test_requests_during_a_query_run_in_batches_in_order_whatever_their_query(store: Reads) -> None:
    first = store.ask(0)
    await store.begun()
    others = store.ask(*range(1, MAX_BATCH + 2))
    others += store.ask(MAX_BATCH + 2, query="SELECT -log(?), 'other'")
    await asyncio.sleep(0)
    store.may_run.set()
    found = await asyncio.gather(*first, *others)
    assert found == [*([(number,)] for number in range(MAX_BATCH + 2)), [(-MAX_BATCH - 2, "other")]]
    assert store.log == list(range(MAX_BATCH + 3))
    assert store.batches == [MAX_BATCH, 3]


async def test_a_failed_query_fails_only_its_own_request(store: Reads) -> None:
    store.may_run.set()
    one, bad, wrong, three = await asyncio.gather(
        *store.ask(1, "bad"), *store.ask(2, query="SELECT ? FROM missing"), *store.ask(3), return_exceptions=True
    )
    assert [one, three] == [[(1,)], [(3,)]]
    assert isinstance(bad, sqlite3.OperationalError)
    assert isinstance(wrong, sqlite3.OperationalError)
    # A value that cannot be bound is no failure of SQLite.
    [huge, four] = await asyncio.gather(*store.ask(2**70, 4), return_exceptions=True)
    assert isinstance(huge, OverflowError)
    assert four == [(4,)]


async def test_cancelled_requests_are_not_read_and_the_others_get_their_rows(store: Reads) -> None:
    running, stays, leaves = store.ask(1, 2, 3)
    await store.begun()
    running.cancel()
    leaves.cancel()
    await asyncio.wait([running, leaves])
    store.may_run.set()
    assert await stays == [(2,)]
    assert await store.reads.rows("SELECT log(?)", [4]) == [(4,)]
    assert store.log == [1, 2, 4]


async def test_requests_after_closing_fail(store: Reads) -> None:
    await store.reads._connection.close()
    with pytest.raises(sqlite3.ProgrammingError, match="closed"):
        await store.reads.rows("SELECT 1", [])
