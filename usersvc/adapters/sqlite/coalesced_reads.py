"""Queries of many callers on one connection."""

import asyncio
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from contextvars import Context
from typing import Any, TypeVar

import aiosqlite

T = TypeVar("T")

MAX_BATCH = 8
"""The maximum number of queries in a batch: each of them waits for all."""

Rows = list[Any]
Result = asyncio.Future[Rows]


async def run_in_thread(connection: aiosqlite.Connection, work: Callable[[sqlite3.Connection], T]) -> T:
    """Run ``work`` in the thread of the connection: a transaction, or a batch of reads.

    Raises:
        sqlite3.ProgrammingError: the connection is closed.
    """
    # aiosqlite has no public method for it: its own change threads for each statement, five times in a transaction.
    if not connection._running:  # noqa: SLF001  # see above
        raise sqlite3.ProgrammingError("the connection is closed")
    result: T = await connection._execute(work, connection._conn)  # type: ignore[no-untyped-call]  # noqa: SLF001  # see above
    return result


class CoalescedReads:
    """Runs queries in batches: those requested while a batch is running are added to it or form the next.

    Waking the thread and being woken by it takes longer than most queries do. Nothing is cached.
    """

    def __init__(self, connection: aiosqlite.Connection) -> None:
        self._connection = connection
        self._pending: deque[tuple[str, Sequence[int | str], Result]] = deque()
        self._running: asyncio.Task[None] | None = None

    async def rows(self, query: str, values: Sequence[int | str]) -> Rows:
        """The rows of a query.

        Raises:
            sqlite3.Error: this query failed, or the connection is closed.
        """
        result: Result = asyncio.get_running_loop().create_future()
        self._pending.append((query, values, result))
        if self._running is None:
            # Not in the context of the first of many callers.
            self._running = asyncio.create_task(self._run(), context=Context())
        return await result

    async def _run(self) -> None:
        while self._pending:
            try:
                outcomes = await run_in_thread(self._connection, self._run_batch)
            except sqlite3.ProgrammingError as error:
                outcomes = [(result, error) for _, _, result in self._pending]
                self._pending.clear()
            for result, outcome in outcomes:
                # The caller may have been cancelled.
                if result.done():
                    continue
                if isinstance(outcome, Exception):
                    result.set_exception(outcome)
                else:
                    result.set_result(outcome)
        self._running = None

    def _run_batch(self, connection: sqlite3.Connection) -> list[tuple[Result, Rows | Exception]]:
        outcomes: list[tuple[Result, Rows | Exception]] = []
        while self._pending and len(outcomes) < MAX_BATCH:
            query, values, result = self._pending.popleft()
            if result.done():
                continue
            try:
                outcomes.append((result, connection.execute(query, values).fetchall()))
            except Exception as error:
                outcomes.append((result, error))
        return outcomes
