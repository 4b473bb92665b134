"""Queries of many callers on one connection."""

import asyncio
import sqlite3
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

MAX_BATCH = 8
"""The maximum number of queries in a batch: each of them waits for all."""

Rows = list[Any]
Result = asyncio.Future[Rows]


class CoalescedReads:
    """Runs queries in a thread, in batches: those requested while a batch is running are added to it or form the next.

    Waking the thread and being woken by it takes longer than most queries do. Nothing is cached.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="sqlite-reads")
        self._pending: deque[tuple[str, Sequence[int | str], Result]] = deque()
        self._is_running = False

    async def rows(self, query: str, values: Sequence[int | str]) -> Rows:
        """The rows of a query.

        Raises:
            sqlite3.Error: this query failed.
        """
        loop = asyncio.get_running_loop()
        result: Result = loop.create_future()
        self._pending.append((query, values, result))
        if not self._is_running:
            self._is_running = True
            self._thread.submit(self._run, loop)
        return await result

    async def close(self) -> None:
        """Wait for the running batch and close the connection; later queries fail."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        """Run a batch, in the thread."""
        batch: list[tuple[Result, Rows | Exception]] = []
        while self._pending and len(batch) < MAX_BATCH:
            query, values, result = self._pending.popleft()
            # The caller may have been cancelled.
            if result.done():
                continue
            try:
                batch.append((result, self._connection.execute(query, values).fetchall()))
            except Exception as error:
                batch.append((result, error))
        loop.call_soon_threadsafe(self._deliver, batch)

    def _deliver(self, batch: list[tuple[Result, Rows | Exception]]) -> None:
        self._is_running = bool(self._pending)
        if self._pending:
            self._thread.submit(self._run, asyncio.get_running_loop())
        for result, outcome in batch:
            if result.done():
                continue
            if isinstance(outcome, Exception):
                result.set_exception(outcome)
            else:
                result.set_result(outcome)
