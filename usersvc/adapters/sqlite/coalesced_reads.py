"""Coalesces concurrent reads of one value each."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from usersvc.adapters.sqlite.database import CALL_TIMEOUT
from usersvc.application.errors import StorageUnavailable

MAX_BATCH = 8
"""The maximum number of requests that one query answers: each of them waits for all."""
CACHED_STATEMENTS = 128
"""The number of combined statements whose text is cached."""

Read = Callable[[str, Sequence[int | str]], Awaitable[list[Any]]]


@dataclass(frozen=True, slots=True, eq=False)
class _Request:
    query: str
    values: Sequence[int | str]
    result: asyncio.Future[Any]


class CoalescedReads:
    """Coalesces concurrent reads: requests that arrive while a query is running are answered by one combined query.

    Passing a query to the reading thread and its row back takes longer than most queries do. A request that arrives
    while no query is running is read immediately. Nothing is cached.
    """

    def __init__(self, read: Read) -> None:
        """Use ``DatabaseFile.read`` for the queries, one at a time."""
        self._read = read
        self._pending: list[_Request] = []
        self._task: asyncio.Task[None] | None = None

    async def value(self, query: str, values: Sequence[int | str]) -> Any:
        """The first column of the only row of a query.

        Raises:
            StorageUnavailable: it cannot be read, or not within ``CALL_TIMEOUT``.
        """
        result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._pending.append(_Request(query, values, result))
        if self._task is None:
            # In an empty context: the task serves more than this request.
            self._task = asyncio.create_task(self._run(), context=Context())
        try:
            async with asyncio.timeout(CALL_TIMEOUT):
                return await result
        except TimeoutError:
            raise StorageUnavailable("cannot read: no answer in time") from None

    async def _run(self) -> None:
        batch: list[_Request] = []
        try:
            while batch := self._next_batch():
                await self._answer(batch)
        finally:
            self._task = None
            # No request may wait for a task that was cancelled, as all are at shutdown.
            for request in [*batch, *self._pending]:
                request.result.cancel()

    def _next_batch(self) -> list[_Request]:
        """Remove the requests that share the query of the oldest one; drop those that were cancelled."""
        pending = [request for request in self._pending if not request.result.done()]
        batch = [request for request in pending if request.query == pending[0].query][:MAX_BATCH]
        self._pending = [request for request in pending if request not in batch]
        return batch

    async def _answer(self, batch: list[_Request]) -> None:
        statement = _combined(batch[0].query, len(batch))
        try:
            [row] = await self._read(statement, [value for request in batch for value in request.values])
        except Exception as error:
            # Only one of several may have read a damaged page: each of them is repeated alone.
            for request in batch:
                if request.result.done():
                    continue
                if len(batch) == 1:
                    request.result.set_exception(error)
                else:
                    await self._answer([request])
        else:
            for request, value in zip(batch, row, strict=True):
                if not request.result.done():
                    request.result.set_result(value)


@lru_cache(maxsize=CACHED_STATEMENTS)
def _combined(query: str, count: int) -> str:
    return f"SELECT {', '.join([f'({query})'] * count)}"
