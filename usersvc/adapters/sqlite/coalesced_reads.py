"""Reads of one value each, of which those that have to wait anyway are made together."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from contextvars import Context
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from usersvc.adapters.sqlite.database import CALL_TIMEOUT
from usersvc.application.errors import StorageUnavailable

MOST = 8
"""How many reads are made together at most: each waits for all of them."""
JOINED_STATEMENTS = 128
"""Of how many statements the text is kept: there are a few queries, each for up to ``MOST`` reads."""

Read = Callable[[str, Sequence[int | str]], Awaitable[list[Any]]]


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    query: str
    values: Sequence[int | str]
    value: asyncio.Future[Any]
    until: float
    alone: bool = False


class CoalescedReads:
    """Makes the reads that come while one is under way together, in one statement that gives one row.

    The way to the thread that reads, and back, takes longer than most reads do, and so does handing Python's lock over
    to that thread, which it needs for each row. A read that finds none under way is made at once, and nothing that was
    read is kept.
    """

    def __init__(self, read: Read) -> None:
        """Read through a function, one statement at a time.

        Args:
            read: ``DatabaseFile.read``.
        """
        self._read = read
        self._waiting: list[_Waiting] = []
        self._reading: asyncio.Task[None] | None = None

    async def value(self, query: str, values: Sequence[int | str]) -> Any:
        """The one value that a query gives: of the first column of its first row.

        Raises:
            StorageUnavailable: it cannot be read, or not within ``CALL_TIMEOUT``.
        """
        loop = asyncio.get_running_loop()
        value: asyncio.Future[Any] = loop.create_future()
        self._waiting.append(_Waiting(query, values, value, loop.time() + CALL_TIMEOUT))
        if self._reading is None:
            # In a context that is no request's: it goes on for others.
            self._reading = asyncio.create_task(self._read_all(), context=Context())
        return await value

    async def _read_all(self) -> None:
        together: list[_Waiting] = []
        try:
            while together := self._next():
                await self._answer(together)
        finally:
            self._reading = None
            # Nobody may wait on when the task is cancelled, as it is at the end of the program.
            for one in [*together, *self._waiting]:
                one.value.cancel()

    def _next(self) -> list[_Waiting]:
        """Take those who ask the same as the first, and have not given up."""
        waiting = [one for one in self._waiting if not one.value.done()]
        if waiting and waiting[0].alone:
            together = waiting[:1]
        else:
            together = [one for one in waiting if one.query == waiting[0].query and not one.alone][:MOST]
        self._waiting = [one for one in waiting if one not in together]
        return together

    async def _answer(self, together: list[_Waiting]) -> None:
        statement = _joined(together[0].query, len(together))
        try:
            # The first has waited longest.
            async with asyncio.timeout_at(together[0].until):
                [found] = await self._read(statement, [value for one in together for value in one.values])
            for one, value in zip(together, found, strict=True):
                if not one.value.done():
                    one.value.set_result(value)
        except TimeoutError:
            # Who came later has time left, and may still be answered.
            now = asyncio.get_running_loop().time()
            late = [one for one in together if one is together[0] or one.until <= now]
            _fail(late, StorageUnavailable("cannot read: no answer in time"))
            self._wait_again([one for one in together if one not in late])
        except StorageUnavailable as error:
            if isinstance(error.__cause__, sqlite3.Error):
                # Only one of them may have met a damaged page.
                self._fail_alone(together, error)
            else:
                _fail(together, error)
        except Exception as error:
            # Whatever it is, it is told to whom it concerns, and not to those who wait for others.
            self._fail_alone(together, error)

    def _fail_alone(self, together: list[_Waiting], error: Exception) -> None:
        """Fail the only one, or let each be read for alone, so that only who is the reason meets the error."""
        if len(together) > 1:
            self._wait_again([replace(one, alone=True) for one in together])
        else:
            _fail(together, error)

    def _wait_again(self, waiting: list[_Waiting]) -> None:
        """Put them back in the order of coming: who has waited longest may not wait behind who came later."""
        self._waiting = sorted([*self._waiting, *waiting], key=lambda one: one.until)


def _fail(together: list[_Waiting], error: Exception) -> None:
    for one in together:
        if one.value.done():
            continue
        failure = error
        if len(together) > 1:
            # One object, raised here and there, would gather the tracebacks of all.
            failure = StorageUnavailable(*error.args)
            failure.__cause__ = error.__cause__
        one.value.set_exception(failure)


@lru_cache(maxsize=JOINED_STATEMENTS)
def _joined(query: str, how_many: int) -> str:
    return f"SELECT {', '.join([f'({query})'] * how_many)}"
