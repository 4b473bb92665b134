"""The connections to PostgreSQL: how many there are, which server they lead to, and what becomes of one that fails."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from usersvc.adapters.server_url import one_url_per_host
from usersvc.application.ports import StorageUnavailable

log = logging.getLogger(__name__)

Connection = asyncpg.Connection

PATIENCE = 5.0
"""How long any call waits for the store in all, in seconds, before it says that the store is not available."""
STATEMENT_TIMEOUT, LOCK_TIMEOUT = 2.0, 1.5
"""How long the server works on a statement, and waits there for a lock, in seconds, before it gives up by itself."""
ANSWER_TIMEOUT = 2.5
"""After how many seconds a server that has not even given up is taken for one that cannot be reached."""
CONNECT_TIMEOUT = 2.0
"""For one address, in seconds. With ``ANSWER_TIMEOUT`` less than ``PATIENCE``: who was waiting when a server went may
still be answered by the one that took its place."""
LONGEST_UNUSED = 60.0
"""How long a connection that nobody needs is kept, in seconds: other processes may find none free on the server."""
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 0.5
"""Between two attempts, in seconds; each pause is twice the one before."""
BREATH, LONGEST_SILENCE = 0.1, 15.0
"""How long a listener, having heard something, takes in what follows without saying so, and after how long in which
nothing is heard it looks whether anything could be; in seconds.

Else each registration would have every process of every host look into the outbox.
"""

SETTINGS = {
    # Acknowledged means durable, and where synchronous_standby_names says so, on another server too.
    "synchronous_commit": "on",
    "default_transaction_isolation": "read committed",
    "statement_timeout": f"{STATEMENT_TIMEOUT * 1000:.0f}",
    "lock_timeout": f"{LOCK_TIMEOUT * 1000:.0f}",
    # Only upgrades keep a transaction open from one statement to the next.
    "idle_in_transaction_session_timeout": f"{PATIENCE * 1000:.0f}",
    # Firewalls forget connections over which nothing goes, and the server those who have vanished.
    "tcp_keepalives_idle": "60",
    # Takes longer to compile than these statements take to run.
    "jit": "off",
}
"""Of each session. Behind PgBouncer it takes ``ignore_startup_parameters`` and the same settings of the role."""

LISTENING, EXPORTING = "usersvc listening", "usersvc exporting"
"""As which ``pg_stat_activity`` shows sessions beside the pool's; each service has one of the first."""

UNDONE = frozenset({
    "25006",  # read_only_sql_transaction: it was the primary, and is a standby now
    "40001",  # serialization_failure
    "40P01",  # deadlock_detected
    "53300",  # too_many_connections
})  # fmt: skip
ENDED = frozenset({
    "57P01",  # admin_shutdown
    "57P02",  # crash_shutdown
    "57P03",  # cannot_connect_now: it is starting or stopping
})  # fmt: skip
PASSING = UNDONE | ENDED
"""After which errors (SQLSTATE) the same may be tried again: nothing was done, or the connection has ended.

What was just being stored when a connection ended may have been stored.
"""

FAILURES = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""Everything that asyncpg and the network below it raise."""


class PostgresPool:
    """At most so many connections, each made when it is needed and kept for a while for the next who needs one.

    Statements run in transactions of their own and alter nothing about their session, so that a connection is given
    back as it is. A statement that fails because of its connection is run again on another one, as long as there is
    patience left.
    """

    def __init__(self, url: str, size: int) -> None:
        """Make the pool, without a connection.

        Args:
            url: ``postgresql://``, perhaps with several hosts; one that can be written to is used.
            size: how many connections there are at most.
        """
        self._addresses = one_url_per_host(url)
        self._size = size
        self._room = asyncio.Semaphore(size)
        # Each with when it was given back.
        self._idle: list[tuple[Connection, float]] = []
        self._is_open = False

    def open(self) -> None:
        """Let connections be made."""
        self._room = asyncio.Semaphore(self._size)
        self._is_open = True

    async def close(self) -> None:
        """Let what is in hand finish, within ``PATIENCE``, and disconnect."""
        self._is_open = False
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE):
                for _ in range(self._size):
                    await self._room.acquire()
        connections, self._idle = self._idle, []
        for connection, _ in connections:
            with suppress(OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await connection.close(timeout=ANSWER_TIMEOUT)

    async def run(self, statement: str, *values: object) -> list[asyncpg.Record]:
        """Run one statement in a transaction of its own; give its rows.

        It is run again when its answer was lost, so it must come to the same when it is done twice.

        Raises:
            StorageUnavailable: it is not known whether it was done, or it breaks a constraint and was not.
        """
        return await self._insist(statement, values, is_repeatable=True)

    async def run_once(self, statement: str, *values: object) -> list[asyncpg.Record]:
        """The same for a statement that must not be done twice: it is run again only when it certainly was not done."""
        return await self._insist(statement, values, is_repeatable=False)

    async def _insist(self, statement: str, values: Sequence[object], *, is_repeatable: bool) -> list[asyncpg.Record]:
        was_sent = False

        async def once() -> list[asyncpg.Record]:
            nonlocal was_sent
            async with self._connection() as connection, asyncio.timeout(ANSWER_TIMEOUT):
                was_sent = True
                return await connection.fetch(statement, *values)

        with told_as_unavailable():
            pause = FIRST_PAUSE
            last: Exception = TimeoutError()
            try:
                async with asyncio.timeout(PATIENCE):
                    while True:
                        was_sent = False
                        try:
                            return await once()
                        except Exception as error:
                            last = error
                            if not _is_passing(error):
                                raise
                            if was_sent and not is_repeatable and not _has_undone_all(error):
                                raise
                        await asyncio.sleep(pause)
                        pause = min(2 * pause, LONGEST_PAUSE)
            except TimeoutError:
                # What has kept it from being done tells more than that time is up.
                raise last from None

    async def connect(self, name: str = "usersvc") -> Connection:
        """A new connection, which does not count as one of the pool and is its caller's to close.

        Args:
            name: as which the server's statistics show it.

        Raises:
            asyncpg.PostgresError: no server lets us in.
            asyncpg.InterfaceError: a part of the URL makes no sense.
            asyncpg.InternalClientError: those that do cannot be written to.
            OSError: none can be reached, ``TimeoutError`` included.
        """
        tried: BaseException | None = None
        for address in self._addresses.copy():
            try:
                # Each for itself: a server that is frozen takes a connection and never answers, and asyncpg, given all
                # of them, would wait there until the time for all is up.
                async with asyncio.timeout(CONNECT_TIMEOUT):
                    return await asyncpg.connect(
                        address,
                        server_settings=SETTINGS | {"application_name": name},
                        target_session_attrs=SessionAttribute.read_write,
                    )
            except FAILURES as error:
                tried = error
                # The next one will be the first to be tried the next time.
                self._addresses.remove(address)
                self._addresses.append(address)
        raise tried or TimeoutError

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        async with self._room:
            if not self._is_open:
                raise StorageUnavailable("the database is closed")
            connection = self._take_idle() or await self.connect()
            try:
                yield connection
            except BaseException as error:
                if not isinstance(error, asyncpg.PostgresError):
                    # Nobody knows what the server is doing for it, or whether it will ever answer.
                    connection.terminate()
                if _is_about_the_server(error):
                    self._forget_idle()
                raise
            finally:
                if not self._is_open:
                    connection.terminate()
                if not connection.is_closed():
                    self._give_back(connection)

    def _give_back(self, connection: Connection) -> None:
        now = time.monotonic()
        self._idle.append((connection, now))
        # The last one is taken first, so that those that are not needed any more stay where they are.
        while self._idle[0][1] < now - LONGEST_UNUSED:
            self._idle.pop(0)[0].terminate()

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection, _ = self._idle.pop()
            if not connection.is_closed():
                return connection
        return None

    def _forget_idle(self) -> None:
        while self._idle:
            self._idle.pop()[0].terminate()


@asynccontextmanager
async def listening(pool: PostgresPool, channel: str, heard: Callable[[], None]) -> AsyncIterator[None]:
    """Call something whenever there is news on a channel, and whenever there may have been some that nobody heard."""
    task = asyncio.create_task(_listen(pool, channel, heard))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def _listen(pool: PostgresPool, channel: str, heard: Callable[[], None]) -> None:
    pause, is_told = FIRST_PAUSE, False
    while True:
        try:
            async with _session(pool, LISTENING) as connection:
                news = asyncio.Event()
                connection.add_termination_listener(lambda _, news=news: news.set())
                async with asyncio.timeout(ANSWER_TIMEOUT):
                    await connection.add_listener(channel, lambda *_, news=news: news.set())
                pause, is_told = FIRST_PAUSE, False
                await _hear(connection, news, heard)
        except FAILURES as error:
            # Nothing is lost by it: whoever is woken here looks by itself too, only later.
            if not is_told:
                log.warning("other processes are not heard just now: %s", _reason(error))
                is_told = True
        await asyncio.sleep(pause)
        pause = min(2 * pause, LONGEST_SILENCE)


async def _hear(connection: Connection, news: asyncio.Event, heard: Callable[[], None]) -> None:
    while not connection.is_closed():
        heard()
        news.clear()
        await asyncio.sleep(BREATH)
        try:
            async with asyncio.timeout(LONGEST_SILENCE):
                await news.wait()
        except TimeoutError:
            # A connection that was cut off looks like one on which nothing is said.
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await connection.execute("SELECT 1")


@asynccontextmanager
async def _session(pool: PostgresPool, name: str) -> AsyncIterator[Connection]:
    connection = await pool.connect(name)
    try:
        yield connection
    finally:
        connection.terminate()


@contextmanager
def told_as_unavailable() -> Iterator[None]:
    """Any failure of PostgreSQL, in the language of the port."""
    try:
        yield
    except FAILURES as error:
        raise StorageUnavailable(f"PostgreSQL: {_reason(error)}") from error


def _reason(error: BaseException) -> str:
    """Which kind of failure: texts of the server hold values, those of the network addresses."""
    if isinstance(error, TimeoutError):
        return "no answer in time"
    state = f" ({error.sqlstate})" if isinstance(error, asyncpg.PostgresError) and error.sqlstate else ""
    return f"{type(error).__name__}{state}"


def _is_passing(error: Exception) -> bool:
    """Whether the same may go well on another connection, or on this one a moment later."""
    if isinstance(error, asyncpg.PostgresError):
        return error.sqlstate in PASSING or isinstance(error, asyncpg.PostgresConnectionError)
    # asyncpg complains of values and settings with errors that are ValueErrors too.
    return isinstance(error, FAILURES) and not isinstance(error, ValueError)


def _has_undone_all(error: Exception) -> bool:
    return isinstance(error, asyncpg.PostgresError) and error.sqlstate in UNDONE


def _is_about_the_server(error: BaseException) -> bool:
    if isinstance(error, asyncpg.PostgresError):
        return error.sqlstate in ENDED | {"25006"} or isinstance(error, asyncpg.PostgresConnectionError)
    return isinstance(error, OSError)
