"""``PostgresUsers`` beyond the contract: positions, the JSON of a page, the schema, retries, notifications."""

# ruff: noqa: ASYNC110  # no event reports that another session waits

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from unittest.mock import Mock
from uuid import uuid4

import asyncpg
import pytest

from tests.e2e.server import DEADLINE, free_port
from tests.fakes import NOW, person
from tests.postgres import connector, execute, fresh_database, on_ports, open_and_close, query
from tests.tcp_proxy import Proxy, proxy
from usersvc.adapters.memory import InMemoryUsers
from usersvc.adapters.postgres import PostgresUsers
from usersvc.adapters.postgres import outbox as postgres_outbox
from usersvc.adapters.postgres import pool as postgres_pool
from usersvc.adapters.postgres import schema as postgres_schema
from usersvc.application.errors import StorageUnavailable
from usersvc.application.idempotency import IdempotencyKey, IdempotencyKeyUsed
from usersvc.application.outbox_entries import OutboxState
from usersvc.application.read_models import Order, view_of
from usersvc.domain.errors import EmailAlreadyRegistered

KEY = IdempotencyKey.named("0b9f6f1c")
SESSIONS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


async def names(users: PostgresUsers) -> list[str]:
    page = await users.page(limit=200, order=Order.ASC, after=None, mailbox=None)
    return [user["email"].partition("@")[0] for user in page.users]


async def until_equal(url: str, statement: str, expected: object) -> None:
    async with asyncio.timeout(DEADLINE):
        while query(url, statement) != [expected]:
            await asyncio.sleep(0.01)


@pytest.fixture
async def users(postgres_url: str) -> AsyncIterator[PostgresUsers]:
    async with PostgresUsers(postgres_url) as users:
        yield users


async def test_a_position_is_drawn_after_all_lower_ones_are_committed(users: PostgresUsers, postgres_url: str) -> None:
    # Another registration has drawn its position and is not committed yet.
    other = await asyncpg.connect(postgres_url)
    async with other.transaction():
        await other.execute("SELECT pg_advisory_xact_lock($1)", postgres_schema.ADDING)
        adding = asyncio.create_task(users.add(person("second@example.com")))
        await until_equal(
            postgres_url, "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted", expected=1
        )
        await other.execute(
            """
            INSERT INTO users VALUES (nextval('users_position'), gen_random_uuid(), 'first@example.com',
                'first@example.com', 30, '$hash', now())
            """
        )
        assert await names(users) == []
    await adding
    await other.close()
    assert await names(users) == ["first", "second"]


ODD = [
    "alice@example.com",
    "jo\u0308rg.M\u00fcller@b\u00fccher.example",
    '"a \\"b\\\\ /<>&\'"@example.com',
    "o'neil+{}%s?$1@example.com",
    "\U0001f600@example.com",
    "用户@例子.广告",
    '"</script>"@example.com',
]


@pytest.mark.parametrize("order", Order)
async def test_pages_equal_those_of_other_stores_byte_for_byte(users: PostgresUsers, order: Order) -> None:
    memory = InMemoryUsers()
    for number, email in enumerate(ODD):
        user = person(email, at=NOW + timedelta(microseconds=10**number))
        await users.add(user)
        await memory.add(user)
    for after, limit in ((None, 50), (2, 2), (4, 1)):
        written = await users.page(limit=limit, order=order, after=after, mailbox=None)
        assert written == await memory.page(limit=limit, order=order, after=after, mailbox=None)


async def test_times_are_shown_in_utc_in_any_server_time_zone(postgres_url: str) -> None:
    alice = person("alice@example.com")
    async with PostgresUsers(f"{postgres_url}?timezone=Asia/Kathmandu") as users:
        await users.add(alice)
        [shown] = (await users.page(limit=1, order=Order.ASC, after=None, mailbox=None)).users
        assert shown == await users.find(alice.id) == view_of(alice)
        assert (await users.archive.users(after=None, limit=1))[0].registered_at == NOW


@pytest.fixture
def empty_database() -> Iterator[str]:
    with fresh_database(has_schema=False) as url:
        yield url


async def test_a_new_database_can_be_opened_concurrently(empty_database: str) -> None:
    await asyncio.gather(*(open_and_close(empty_database) for _ in range(8)))
    assert query(empty_database, "SELECT version FROM usersvc_schema_version ORDER BY version") == [
        version + 1 for version in range(len(postgres_schema.MIGRATIONS))
    ]


async def test_only_missing_migrations_run(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await open_and_close(empty_database)
    later = (*postgres_schema.MIGRATIONS, "CREATE TABLE one (); CREATE TABLE two ()", "CREATE TABLE three ()")
    monkeypatch.setattr(postgres_schema, "MIGRATIONS", later)
    await open_and_close(empty_database)
    await open_and_close(empty_database)
    assert query(empty_database, "SELECT count(*) FROM pg_tables WHERE tablename IN ('one', 'two', 'three')") == [3]


async def test_a_failed_migration_changes_nothing(empty_database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_schema, "MIGRATIONS", (*postgres_schema.MIGRATIONS, "CREATE TABLE one (); nonsense"))
    with pytest.raises(StorageUnavailable, match=r"^PostgreSQL: PostgresSyntaxError \(42601\)$"):
        await open_and_close(empty_database)
    assert query(empty_database, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [0]
    monkeypatch.undo()
    await open_and_close(empty_database)


async def test_a_newer_schema_is_refused(empty_database: str) -> None:
    await open_and_close(empty_database)
    execute(empty_database, "INSERT INTO usersvc_schema_version VALUES (99)")
    with pytest.raises(StorageUnavailable, match="has schema 99, made by a newer usersvc; this one knows up to"):
        await open_and_close(empty_database)


async def test_tables_of_a_pre_release_version_are_refused_and_unchanged(empty_database: str) -> None:
    execute(empty_database, "CREATE TABLE users ()")
    with pytest.raises(StorageUnavailable, match="pre-release usersvc or of another program; export the users"):
        await open_and_close(empty_database)
    assert query(empty_database, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [1]


async def test_a_database_in_another_encoding_is_refused() -> None:
    with (
        fresh_database(encoding="SQL_ASCII", has_schema=False) as url,
        pytest.raises(StorageUnavailable, match="encoding of the database is not UTF8"),
    ):
        await open_and_close(url)


async def test_an_existing_schema_needs_no_right_to_create_tables(postgres_url: str) -> None:
    role = f"usersvc_test_{uuid4().hex[:12]}"
    execute(
        postgres_url,
        f"""
        CREATE ROLE {role};
        GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {role};
        GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO {role};
        """,
    )
    try:
        async with PostgresUsers(f"{postgres_url}?role={role}") as users:
            await users.add(person("alice@example.com"), key=KEY)
            await users.check()
            assert await names(users) == ["alice"]
    finally:
        execute(postgres_url, f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_acknowledged_users_are_on_the_disk(users: PostgresUsers) -> None:
    settings = await users._pool.run(
        "SELECT current_setting('synchronous_commit'), current_setting('transaction_isolation'),"
        " current_setting('statement_timeout'), current_setting('lock_timeout'),"
        " current_setting('idle_in_transaction_session_timeout')"
    )
    assert [tuple(row) for row in settings] == [("on", "read committed", "2s", "1500ms", "5s")]


async def test_the_oldest_entry_is_reported_when_counting_takes_too_long(
    users: PostgresUsers, postgres_url: str
) -> None:
    for name in ("alice", "bob"):
        await users.add(person(f"{name}@example.com"))
    [alice] = await users.outbox.lease(now=NOW, until=NOW, limit=1)
    await users.outbox.dead_letter(alice, reason="no such mailbox")
    # Reading a dead-lettered entry takes longer than a statement may.
    execute(
        postgres_url,
        """
        ALTER TABLE outbox RENAME TO entries;
        CREATE VIEW outbox AS SELECT * FROM entries WHERE due_at IS NOT NULL OR pg_sleep(60) IS NOT NULL;
        """,
    )
    try:
        assert await users.outbox.state() == OutboxState(pending=None, dead_lettered=None, oldest=NOW)
    finally:
        execute(postgres_url, "DROP VIEW outbox; ALTER TABLE entries RENAME TO outbox")
    assert await users.outbox.state() == OutboxState(pending=1, dead_lettered=1, oldest=NOW)


@pytest.fixture
def failing_at_first(postgres_url: str) -> Iterator[Callable[[str], None]]:
    """Makes the server fail the first two additions with an error of this SQLSTATE."""

    def fail(state: str) -> None:
        execute(
            postgres_url,
            f"""
            CREATE SEQUENCE attempts;
            CREATE FUNCTION fail() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF nextval('attempts') <= 2 THEN RAISE EXCEPTION 'not now' USING ERRCODE = '{state}'; END IF;
                RETURN new;
            END $$;
            CREATE TRIGGER fail BEFORE INSERT ON outbox FOR EACH ROW EXECUTE FUNCTION fail();
            """,
        )

    yield fail
    execute(postgres_url, "DROP FUNCTION IF EXISTS fail CASCADE; DROP SEQUENCE IF EXISTS attempts")


@pytest.mark.parametrize("state", ["25006", "57P01", "57P02", "57P03"])
async def test_sessions_of_a_lost_server_are_not_used_again(
    users: PostgresUsers, postgres_url: str, failing_at_first: Callable[[str], None], state: str
) -> None:
    await asyncio.gather(*(users.check() for _ in range(20)))
    before = query(postgres_url, f"SELECT pid {SESSIONS} AND application_name = 'usersvc'")
    failing_at_first(state)
    await users.add(person("alice@example.com"))
    await asyncio.gather(*(users.check() for _ in range(20)))
    await until_equal(postgres_url, f"SELECT count(*) {SESSIONS} AND pid = ANY (ARRAY{before})", expected=0)
    assert len(before) > 1


@pytest.mark.parametrize("state", ["25006", "40001", "40P01", "53300"])
async def test_a_rolled_back_statement_is_retried_though_it_is_not_idempotent(
    users: PostgresUsers, failing_at_first: Callable[[str], None], state: str
) -> None:
    failing_at_first(state)
    assert await users.add_all([person("alice@example.com")]) == [True]


@pytest.mark.parametrize("state", ["53100", "55P03", "57014", "XX000"])
async def test_permanent_errors_are_not_retried(
    users: PostgresUsers, failing_at_first: Callable[[str], None], state: str
) -> None:
    failing_at_first(state)
    for _ in range(2):
        with pytest.raises(StorageUnavailable, match=state):
            await users.add(person("alice@example.com"), key=KEY)
    await users.add(person("alice@example.com"), key=KEY)
    assert await names(users) == ["alice"]


@asynccontextmanager
async def over_a_bad_network(url: str) -> AsyncIterator[tuple[PostgresUsers, Proxy]]:
    async with proxy(connector(url)) as network, PostgresUsers(on_ports(url, network.port)) as users:
        # Open a connection that can fail.
        await users.check()
        yield users, network


@pytest.mark.parametrize("key", [None, KEY])
async def test_a_lost_response_is_retried_without_adding_a_user_twice(
    postgres_url: str, key: IdempotencyKey | None
) -> None:
    async with over_a_bad_network(postgres_url) as (users, network):
        await users.add(person("warm-up@example.com"), key=IdempotencyKey.named("warm-up") if key else None)
        network.lose_next_response()
        await users.add(person("alice@example.com"), key=key)
        assert network.lost.is_set()
        assert await names(users) == ["warm-up", "alice"]
        assert len(await users.outbox.entries()) == 2
        with pytest.raises(EmailAlreadyRegistered if key is None else IdempotencyKeyUsed):
            await users.add(person("alice@example.com"), key=key)


async def test_a_lost_response_of_a_statement_that_is_not_idempotent_is_reported(postgres_url: str) -> None:
    async with over_a_bad_network(postgres_url) as (users, network):
        alice, bob = person("alice@example.com"), person("bob@example.com")
        assert await users.add_all([alice]) == [True]
        network.lose_next_response()
        with pytest.raises(StorageUnavailable):
            await users.add_all([bob])
        assert await names(users) == ["alice", "bob"]
        assert await users.remove(alice.id)
        network.lose_next_response()
        with pytest.raises(StorageUnavailable):
            await users.remove(bob.id)
        assert await names(users) == []


@pytest.mark.parametrize("fault", [Proxy.refuse, Proxy.hold])
async def test_a_lost_server_is_unavailable_in_bounded_time_until_it_returns(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Proxy], None]
) -> None:
    for timeout, seconds in {"CALL_TIMEOUT": 0.6, "RESPONSE_TIMEOUT": 0.2, "CONNECT_TIMEOUT": 0.2}.items():
        monkeypatch.setattr(postgres_pool, timeout, seconds)
    async with over_a_bad_network(postgres_url) as (users, network):
        await users.add(person("alice@example.com"))
        fault(network)
        await assert_unavailable(users)
        network.recover()
        await users.add(person("bob@example.com"))
        # The user of the failed call may have been added or not.
        assert {"alice", "bob"} <= set(await names(users))


async def assert_unavailable(users: PostgresUsers) -> None:
    attempts = (users.check(), users.add(person("carol@example.com")), names(users), users.outbox.entries())
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StorageUnavailable] * 4


async def test_when_one_server_hangs_the_other_is_used(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_pool, "RESPONSE_TIMEOUT", 0.5)
    monkeypatch.setattr(postgres_pool, "CONNECT_TIMEOUT", 0.5)
    async with (
        proxy(connector(postgres_url)) as one,
        proxy(connector(postgres_url)) as two,
        PostgresUsers(on_ports(postgres_url, one.port, two.port)) as users,
    ):
        await users.add(person("alice@example.com"))
        one.hold()
        await asyncio.gather(*(users.add(person(f"user{n}@example.com")) for n in range(10)))
        one.recover()
        two.refuse()
        await users.add(person("bob@example.com"))
        assert len(await names(users)) == 12


async def test_a_read_only_server_is_not_used(postgres_url: str) -> None:
    async with proxy(connector(postgres_url)) as network:
        url = on_ports(postgres_url, network.port)
        with pytest.raises(StorageUnavailable, match="TargetServerAttributeNotMatched"):
            await open_and_close(f"{url}&default_transaction_read_only=on")
        await open_and_close(url)


async def test_waiting_for_a_free_connection_ends_in_bounded_time(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_pool, "CALL_TIMEOUT", 0.2)
    async with PostgresUsers(postgres_url, pool_size=1) as users:
        async with users._pool._connection():
            with pytest.raises(StorageUnavailable, match=r"^PostgreSQL: timed out$"):
                await users.add(person("alice@example.com"))
        assert await names(users) == []


async def test_the_pool_size_is_respected_and_idle_connections_are_closed(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connections = f"SELECT count(*) {SESSIONS} AND application_name = 'usersvc'"
    monkeypatch.setattr(postgres_pool, "MAX_IDLE_TIME", 2.0)
    async with PostgresUsers(postgres_url, pool_size=3) as users:
        await asyncio.gather(*(users.check() for _ in range(30)))
        assert query(postgres_url, connections) == [3]
        await until_equal(postgres_url, connections, expected=0)
        await users.check()


async def test_slow_readers_hold_no_transaction_snapshot_lock_or_connection(postgres_url: str) -> None:
    async with PostgresUsers(postgres_url, pool_size=1) as users:
        await users.add_all([person(f"user{number}@example.com") for number in range(3)])
        page = await users.page(limit=1, order=Order.ASC, after=None, mailbox=None)
        # The only connection of the pool is idle, outside of a transaction.
        assert query(postgres_url, f"SELECT state {SESSIONS}") == ["idle"]
        assert query(postgres_url, f"SELECT count(backend_xmin) {SESSIONS}") == [0]
        execute(postgres_url, "BEGIN; LOCK TABLE users NOWAIT; COMMIT")
        page = await users.page(limit=2, order=Order.ASC, after=page.next_after, mailbox=None)
        assert (len(page.users), page.next_after) == (2, None)


async def test_a_duplicate_id_is_not_reported_as_a_taken_mailbox(users: PostgresUsers) -> None:
    alice = person("alice@example.com")
    await users.add(alice)
    with pytest.raises(StorageUnavailable, match=r"^PostgreSQL: UniqueViolationError \(23505\)$"):
        await users.add(replace(person("bob@example.com"), id=alice.id))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://alice:hunter2@127.0.0.1:{port}/database",
        "postgresql://alice:hunter2@no-such-host.invalid/database",
        "postgresql:///database?host=/no/such/folder",
        "postgresql://alice:hunter2@127.0.0.1:{port}/database?sslmode=verify-full&sslrootcert=/no/such/file",
    ],
)
async def test_an_unreachable_server_is_reported_without_its_address(url: str) -> None:
    url = url.format(port=free_port())
    with pytest.raises(StorageUnavailable) as refused:
        await open_and_close(url)
    assert re.fullmatch(r"PostgreSQL: \w+", str(refused.value))


async def test_a_listener_is_notified_at_the_start_and_of_additions_and_retries_by_others(postgres_url: str) -> None:
    heard = asyncio.Event()
    async with (
        PostgresUsers(postgres_url) as other,
        PostgresUsers(postgres_url) as users,
        users.outbox.listen(heard.set),
    ):
        await next_time(heard)
        await other.add(person("alice@example.com"))
        await next_time(heard)
        await other.add_all([person("bob@example.com")])
        await next_time(heard)
        entries = await other.outbox.entries()
        assert await other.outbox.retry(entries[0].id, now=NOW)
        await next_time(heard)


async def next_time(heard: asyncio.Event) -> None:
    async with asyncio.timeout(DEADLINE):
        await heard.wait()
    heard.clear()


async def test_a_listener_reconnects_and_logs_a_failure_once(
    postgres_url: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_outbox, "RECONNECT_PAUSE", 0.01)
    heard = asyncio.Event()
    async with (
        PostgresUsers(postgres_url) as other,
        over_a_bad_network(postgres_url) as (users, network),
        users.outbox.listen(heard.set),
    ):
        await next_time(heard)
        for _ in range(2):
            network.refuse()
            async with asyncio.timeout(DEADLINE):
                # Several failures in a row; asyncpg connects twice, with TLS and without.
                for _ in range(6):
                    await network.refused.acquire()
            network.recover()
            # Notified at once, since notifications may have been missed.
            await next_time(heard)
        await other.add(person("alice@example.com"))
        await next_time(heard)
    assert caplog.text.count("cannot listen for notifications, retrying") == 2


async def test_many_notifications_are_combined(postgres_url: str) -> None:
    heard = Mock()
    async with (
        PostgresUsers(postgres_url) as other,
        PostgresUsers(postgres_url) as users,
        users.outbox.listen(heard),
    ):
        for number in range(300):
            await other.add(person(f"user{number}@example.com"))
    assert 1 <= heard.call_count < 100
