"""Connections to PostgreSQL: pooling, fail-over and retries."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress

import asyncpg
from asyncpg.connect_utils import SessionAttribute
from asyncpg.pool import PoolConnectionProxy

from usersvc.adapters.server_url import one_url_per_host
from usersvc.application.errors import StorageUnavailable

Connection = asyncpg.Connection

CALL_TIMEOUT = 5.0
"""The maximum time of any call, with waiting for a connection and all retries, in seconds."""

RESPONSE_TIMEOUT, CONNECT_TIMEOUT = 2.5, 2.0
"""Seconds after which a server is unreachable; the sum leaves time to fail over within ``CALL_TIMEOUT``."""

MAX_IDLE_TIME = 60.0
"""How long an unused connection is kept, in seconds: other processes need the server's slots too."""

RETRY_PAUSE = 0.1
"""Seconds between two attempts."""

SETTINGS = {
    # Acknowledged means durable, with synchronous_standby_names also on another server.
    "synchronous_commit": "on",
    "default_transaction_isolation": "read committed",
    "statement_timeout": "2s",
    "lock_timeout": "1500ms",
    # Only migrations keep a transaction open from one statement to the next.
    "idle_in_transaction_session_timeout": "5s",
    # Firewalls drop idle connections silently, and a server should notice clients that are gone.
    "tcp_keepalives_idle": "60",
    # Compiling takes longer than these statements do.
    "jit": "off",
    # A day is 24 hours in every sum of times.
    "TimeZone": "UTC",
    "application_name": "usersvc",
}
"""Of each session. PgBouncer needs ``ignore_startup_parameters`` for them, and the same settings on the role."""

ROLLED_BACK = (
    asyncpg.ReadOnlySQLTransactionError,  # the server was demoted to a standby
    asyncpg.SerializationError,
    asyncpg.DeadlockDetectedError,
    asyncpg.TooManyConnectionsError,
)
"""Errors after which the transaction certainly was not committed."""

SERVER_LOST = (
    OSError,
    asyncpg.PostgresConnectionError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.AdminShutdownError,
    asyncpg.CrashShutdownError,
    asyncpg.CannotConnectNowError,
)
"""Errors after which no session of this server is used again. One that ended while it waited for a synchronous standby
has committed, but the standby may not have the data."""

FAILURES = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""Everything that asyncpg and the network raise."""


class PostgresPool:
    """A connection pool that fails over between hosts and retries what is safe to retry."""

    def __init__(self, url: str, size: int) -> None:
        """Create a pool of at most ``size`` connections, to the first host of the URL that accepts writes."""
        self._addresses = one_url_per_host(url)
        self._size = size
        self._pool: asyncpg.Pool | None = None

    async def open(self) -> None:
        """Allow connections; they are made when they are needed."""
        self._pool = await asyncpg.create_pool(
            min_size=0,
            max_size=self._size,
            max_inactive_connection_lifetime=MAX_IDLE_TIME,
            connect=lambda *_, **__: self._connect(),
            reset=_keep_session,
        )

    async def close(self) -> None:
        """Wait for running calls, for at most ``CALL_TIMEOUT``, and disconnect."""
        pool, self._pool = self._pool, None
        if pool is not None:
            with suppress(*FAILURES):
                async with asyncio.timeout(CALL_TIMEOUT):
                    await pool.close()

    async def run(self, statement: str, *values: object, is_idempotent: bool = True) -> list[asyncpg.Record]:
        """Run a statement in a transaction of its own; returns its rows.

        It is retried if it certainly was not committed. An idempotent one is also retried after a lost connection.

        Raises:
            StorageUnavailable: it is unknown whether it was committed; or it violates a constraint and was not.
        """
        last = None
        with _storage_errors():
            try:
                async with asyncio.timeout(CALL_TIMEOUT):
                    while True:
                        is_repeatable = True
                        try:
                            async with self._connection() as connection:
                                is_repeatable = is_idempotent
                                return await connection.fetch(statement, *values, timeout=RESPONSE_TIMEOUT)
                        except FAILURES as error:
                            last = error
                            # asyncpg's errors about values and settings are ValueErrors.
                            is_permanent = isinstance(error, (ValueError, asyncpg.PostgresError))
                            is_transient = isinstance(error, SERVER_LOST) or not is_permanent
                            if not (isinstance(error, ROLLED_BACK) or (is_repeatable and is_transient)):
                                raise
                        await asyncio.sleep(RETRY_PAUSE)
            except TimeoutError as timeout:
                # The last failure says more than the timeout.
                raise last or timeout from None

    @asynccontextmanager
    async def session(self) -> AsyncIterator[Connection]:
        """A connection outside the pool, in which every failure is a ``StorageUnavailable``."""
        with _storage_errors():
            connection = await self._connect()
            try:
                yield connection
            finally:
                connection.terminate()

    async def _connect(self) -> Connection:
        last: Exception = TimeoutError()
        for address in self._addresses.copy():
            try:
                # One host at a time: asyncpg has one timeout for all hosts, which a frozen server would use up.
                return await asyncpg.connect(
                    address,
                    timeout=CONNECT_TIMEOUT,
                    server_settings=SETTINGS,
                    target_session_attrs=SessionAttribute.read_write,
                )
            except FAILURES as error:
                last = error
                # The host is tried last the next time.
                self._addresses.remove(address)
                self._addresses.append(address)
        raise last

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[PoolConnectionProxy]:
        pool = self._pool
        if pool is None:
            raise StorageUnavailable("the database is closed")
        async with pool.acquire() as connection:
            try:
                yield connection
            except BaseException as error:
                if isinstance(error, SERVER_LOST):
                    # The other sessions of this server are not used again either.
                    await pool.expire_connections()
                if isinstance(error, SERVER_LOST) or not isinstance(error, asyncpg.PostgresError):
                    # A statement may still be running in it.
                    connection.terminate()
                raise


async def _keep_session(_: Connection) -> None:
    """Replaces asyncpg's reset of a session, which would reset nothing here."""


@contextmanager
def _storage_errors() -> Iterator[None]:
    """Report only the kind of a failure: messages of the server contain values, those of the network addresses."""
    try:
        yield
    except TimeoutError as error:
        raise StorageUnavailable("PostgreSQL: timed out") from error
    except FAILURES as error:
        state = f" ({error.sqlstate})" if isinstance(error, asyncpg.PostgresError) and error.sqlstate else ""
        raise StorageUnavailable(f"PostgreSQL: {type(error).__name__}{state}") from error
