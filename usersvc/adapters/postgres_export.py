"""Everybody, read from a cursor of PostgreSQL's that waits for nobody."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing, suppress

from usersvc.adapters.postgres_pool import ANSWER_TIMEOUT, EXPORTING, FAILURES, PostgresPool
from usersvc.application.pages import BATCH, ReadPage
from usersvc.application.ports import Order

CURSORS = 2
"""How many a process has open at once, each on a connection beside the pool's: who comes later reads pages."""
LONGEST = 1.0
"""How long one is kept, in seconds, whether its reader reads or not.

Vacuum has to heed its snapshot. Whoever changes the table, as a migration does, has to wait for its end, and all others
wait behind that one: for less than ``LOCK_TIMEOUT``.
"""

# PostgreSQL writes the JSON of many users at once, which is sent as it is. Its own functions for objects put in spaces.
LINE = """
'{"id":"' || id || '","email":' || to_json(email) || ',"age":' || age || ',"registered_at":"'
    || to_char(registered_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z') || '"}'
"""


class PostgresExport:
    """Lists of everybody.

    A reader who asks for one batch soon after the other has them from a cursor of the server: one snapshot, in which
    nothing is looked up again. It is on a connection that is not one of the pool, so that no number of readers keeps
    anybody else waiting, and it is given up soon, read to the end or not. Then, as when it was lost or there is none to
    be had, a page goes on behind the last position, and after that another cursor.
    """

    def __init__(self, pool: PostgresPool, read_page: ReadPage) -> None:
        self._pool = pool
        self._read_page = read_page
        self._room = asyncio.Semaphore(CURSORS)

    async def batches(self, *, order: Order, after: int | None) -> AsyncGenerator[bytes, None]:
        """See ``Users.batches``."""
        clock = asyncio.get_running_loop().time
        begin, is_worth_trying = after, True
        while True:
            # At first too: most lists end here, and what is wrong is told before anything is.
            page = await self._read_page(limit=BATCH, order=order, after=begin, mailbox=None)
            shown_at = clock()
            if page.lines:
                yield page.lines + b"\n"
            if page.next_after is None:
                return
            begin = page.next_after
            if is_worth_trying and clock() - shown_at < LONGEST:
                is_worth_trying = False
                async with aclosing(self._from_cursor(order, begin)) as batches:
                    async for lines, last in batches:
                        begin, is_worth_trying = last, True
                        yield lines

    async def _from_cursor(self, order: Order, after: int) -> AsyncGenerator[tuple[bytes, int], None]:
        """Batches, each with its last position, until there are no more or the cursor has ended for another reason."""
        loop = asyncio.get_running_loop()
        if self._room.locked():
            return
        with ExitStack() as held:
            await self._room.acquire()
            held.callback(self._room.release)
            try:
                connection = await self._pool.connect(EXPORTING)
            except FAILURES:
                return
            held.callback(connection.terminate)
            ends_at = loop.time() + LONGEST
            try:
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    await connection.execute(_declaration(order, after))
                while loop.time() < ends_at and not connection.is_closed():
                    async with asyncio.timeout(ANSWER_TIMEOUT):
                        batch = await connection.fetchrow("FETCH FROM everybody")
                    if batch is None:
                        break
                    giving_up = loop.call_at(ends_at, held.close)
                    try:
                        yield batch["lines"], batch["last"]
                    finally:
                        giving_up.cancel()
            except FAILURES:
                connection.terminate()
            except asyncio.CancelledError:
                # In the middle of an answer, for the rest of which nobody waits any more.
                connection.terminate()
                raise
            finally:
                # Told, where it can be: the server's log has a line for each who just hangs up.
                with suppress(*FAILURES):
                    await connection.close(timeout=ANSWER_TIMEOUT)


def _declaration(order: Order, after: int) -> str:
    """What opens a cursor, in one way to the server and back; each of its rows is a batch.

    Rows of one user each would cost us three times as much. The first user of each batch is found in the index, and the
    others behind that one; no plan may be chosen that sorts everybody before the first comes. Where this cannot be done
    (CockroachDB lacks enable_sort), lists are pages.
    """
    behind, last = (">", "max") if order is Order.ASC else ("<", "min")
    return f"""
        BEGIN READ ONLY;
        SET LOCAL enable_sort = off;
        SET LOCAL enable_seqscan = off;
        DECLARE everybody NO SCROLL CURSOR FOR
        SELECT batch.lines, batch.last
        FROM (
            SELECT position, row_number() OVER (ORDER BY position {order}) AS number
            FROM users WHERE position {behind} {after}
        ) AS first
        CROSS JOIN LATERAL (
            SELECT convert_to(string_agg({LINE} || chr(10), '' ORDER BY position {order}), 'UTF8') AS lines,
                {last}(position) AS last
            FROM (
                SELECT * FROM users WHERE position {behind}= first.position ORDER BY position {order} LIMIT {BATCH}
            ) AS shown
        ) AS batch
        WHERE first.number % {BATCH} = 1
    """  # noqa: S608  # constants, and a whole number
