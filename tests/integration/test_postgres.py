"""What ``PostgresUsers`` does beside the contract: positions, its JSON, its schema, what it tries again, who hears."""

# ruff: noqa: ASYNC110  # nothing tells when another session waits

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import asyncpg
import pytest

from tests.e2e.server import DEADLINE, free_port
from tests.postgres import by_way_of, execute, fresh_database, query, way_to
from tests.tcp_proxy import Proxy, proxy
from usersvc.adapters.memory import InMemoryUsers
from usersvc.adapters.postgres import PostgresUsers
from usersvc.adapters.postgres import pool as postgres_pool
from usersvc.adapters.postgres import schema as postgres_schema
from usersvc.application.errors import StorageUnavailable
from usersvc.application.idempotency import IdempotencyKey, IdempotencyKeyUsed
from usersvc.application.outbox_entries import OutboxState
from usersvc.application.read_models import Order, view_of
from usersvc.domain.errors import EmailAlreadyRegistered
from usersvc.domain.user import PasswordHash, User

NOW = datetime(2026, 1, 31, 9, 30, 0, 120, tzinfo=UTC)
KEY = IdempotencyKey.named("0b9f6f1c")


def person(email: str, *, at: datetime = NOW) -> User:
    registration = User.register(email=email, password="correct horse battery", age=30)
    return registration.complete(PasswordHash("$hash"), at=at)


async def names(users: PostgresUsers) -> list[str]:
    page = await users.page(limit=200, order=Order.ASC, after=None, mailbox=None)
    return [user["email"].partition("@")[0] for user in page.users]


@pytest.fixture
async def users(postgres_url: str) -> AsyncIterator[PostgresUsers]:
    async with PostgresUsers(postgres_url) as users:
        yield users


# --- positions ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [1, 7])
async def test_paging_during_registrations_skips_and_repeats_no_user(postgres_url: str, limit: int) -> None:
    registering, each = 8, 40
    async with AsyncExitStack() as stack:
        hosts = [await stack.enter_async_context(PostgresUsers(postgres_url)) for _ in range(3)]
        reader = await stack.enter_async_context(PostgresUsers(postgres_url))
        finished = 0

        async def register(number: int) -> None:
            nonlocal finished
            for turn in range(each):
                key = IdempotencyKey.named(f"{number}-{turn}") if turn % 3 else None
                await hosts[number % 3].add(person(f"user{number}-{turn}@example.com"), key=key)
            finished += 1

        seen: list[str] = []

        async def read() -> None:
            """Whoever has come behind the last one seen, again and again until nobody comes any more."""
            after = None
            while True:
                nobody_can_come = finished == registering
                records = await reader.archive.users(after=after, limit=limit)
                seen.extend(record.email for record in records)
                if records:
                    after = records[-1].position
                elif nobody_can_come:
                    return

        await asyncio.gather(read(), *map(register, range(registering)))
        assert len(seen) == len(set(seen)) == registering * each
        assert seen == [record.email for record in await reader.archive.users(after=None, limit=1000)]


async def test_a_position_is_drawn_after_all_lower_ones_are_committed(users: PostgresUsers, postgres_url: str) -> None:
    other = await asyncpg.connect(postgres_url)
    slow = other.transaction()
    await slow.start()
    # As a registration does that has drawn its position, and is just being stored.
    await other.execute("SELECT pg_advisory_xact_lock($1)", postgres_schema.ADDING)
    adding = asyncio.create_task(users.add(person("second@example.com")))
    async with asyncio.timeout(DEADLINE):
        while not await other.fetchval("SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"):
            await asyncio.sleep(0.01)
    await other.execute(
        """
        INSERT INTO users VALUES (nextval('users_position'), gen_random_uuid(), 'first@example.com',
            'first@example.com', 30, '$hash', now())
        """
    )
    assert await names(users) == []
    await slow.commit()
    await adding
    await other.close()
    assert await names(users) == ["first", "second"]


# --- the JSON of a page ---------------------------------------------------------------------------------------------

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
        someone = person(email, at=NOW + timedelta(microseconds=10**number))
        await users.add(someone)
        await memory.add(someone)
    for after, limit in ((None, 50), (2, 2), (4, 1)):
        written = await users.page(limit=limit, order=order, after=after, mailbox=None)
        assert written == await memory.page(limit=limit, order=order, after=after, mailbox=None)


async def test_times_are_shown_in_utc_in_any_server_time_zone(postgres_url: str) -> None:
    someone = person("alice@example.com")
    async with PostgresUsers(f"{postgres_url}?timezone=Asia/Kathmandu") as users:
        await users.add(someone)
        [shown] = (await users.page(limit=1, order=Order.ASC, after=None, mailbox=None)).users
        assert shown == await users.find(someone.id) == view_of(someone)
        assert (await users.archive.users(after=None, limit=1))[0].registered_at == NOW


# --- the schema -----------------------------------------------------------------------------------------------------


async def open_and_close(url: str) -> None:
    async with PostgresUsers(url) as users:
        await users.check()


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
    execute(empty_database, "CREATE TABLE users (); CREATE TABLE usersvc_schema (version integer PRIMARY KEY)")
    execute(empty_database, "INSERT INTO usersvc_schema VALUES (1)")
    with pytest.raises(StorageUnavailable, match="pre-release usersvc or of another program; export the users"):
        await open_and_close(empty_database)
    assert query(empty_database, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [2]


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
    await users.outbox.dead_letter(alice, reason="nobody lives there")
    # To look at who is dead-lettered takes longer than any statement may.
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


# --- what is tried again --------------------------------------------------------------------------------------------


@pytest.fixture
def failing_at_first(postgres_url: str) -> Iterator[Callable[[str], None]]:
    """Has the server fail the first two registrations with an error of this SQLSTATE."""

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


@pytest.mark.parametrize("state", ["40001", "40P01", "57P01"])
@pytest.mark.parametrize("key", [None, KEY])
async def test_rolled_back_statements_are_retried(
    users: PostgresUsers, failing_at_first: Callable[[str], None], state: str, key: IdempotencyKey | None
) -> None:
    failing_at_first(state)
    await users.add(person("alice@example.com"), key=key)
    assert await names(users) == ["alice"]
    assert len(await users.outbox.entries()) == 1


@pytest.mark.parametrize("state", ["25006", "57P01"])
async def test_sessions_of_a_lost_server_are_not_used_again(
    users: PostgresUsers, postgres_url: str, failing_at_first: Callable[[str], None], state: str
) -> None:
    sessions = "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'usersvc'"
    await asyncio.gather(*(users.check() for _ in range(20)))
    before = set(query(postgres_url, sessions))
    failing_at_first(state)
    await users.add(person("alice@example.com"))
    await asyncio.gather(*(users.check() for _ in range(20)))
    async with asyncio.timeout(DEADLINE):
        while before & set(query(postgres_url, sessions)):
            await asyncio.sleep(0.01)
    assert len(before) > 1


@pytest.mark.parametrize("state", ["57014", "53100", "XX000"])
async def test_permanent_errors_are_not_retried(
    users: PostgresUsers, failing_at_first: Callable[[str], None], state: str
) -> None:
    failing_at_first(state)
    for _ in range(2):
        with pytest.raises(StorageUnavailable, match=state):
            await users.add(person("alice@example.com"), key=KEY)
    await users.add(person("alice@example.com"), key=KEY)
    assert await names(users) == ["alice"]


async def test_a_deadlock_is_retried(users: PostgresUsers, postgres_url: str) -> None:
    alice = person("alice@example.com")
    await users.add(alice)
    # Removing locks a user and then the schema; the other one does it the other way round.
    execute(
        postgres_url,
        """
        CREATE FUNCTION lock_schema() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
            PERFORM FROM usersvc_schema_version FOR UPDATE; RETURN old;
        END $$;
        CREATE TRIGGER lock_schema AFTER DELETE ON users FOR EACH ROW EXECUTE FUNCTION lock_schema();
        """,
    )
    other = await asyncpg.connect(postgres_url, server_settings={"deadlock_timeout": "1h"})
    try:
        crossing = other.transaction()
        await crossing.start()
        await other.execute("SELECT FROM usersvc_schema_version FOR UPDATE")
        removing = asyncio.create_task(users.remove(alice.id))
        async with asyncio.timeout(DEADLINE):
            while not await other.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.01)
        # Refused is who notices first, and this one does not look.
        await other.execute("UPDATE users SET age = 31")
        assert not removing.done()
        await crossing.commit()
        assert await removing
    finally:
        await other.close()
        execute(postgres_url, "DROP FUNCTION lock_schema CASCADE")


@asynccontextmanager
async def over_a_bad_network(url: str, **sizes: int) -> AsyncIterator[tuple[PostgresUsers, Proxy]]:
    with proxy(way_to(url)) as network:
        async with PostgresUsers(by_way_of(network.port, url), **sizes) as users:
            # So that a connection is there that can fail.
            await users.check()
            yield users, network


@pytest.mark.parametrize("key", [None, KEY])
async def test_a_lost_response_is_retried_without_adding_a_user_twice(
    postgres_url: str, key: IdempotencyKey | None
) -> None:
    async with over_a_bad_network(postgres_url) as (users, network):
        await users.add(person("warm-up@example.com"), key=IdempotencyKey.named("warm-up") if key else None)
        network.lose_the_next_answer()
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
        network.lose_the_next_answer()
        with pytest.raises(StorageUnavailable):
            await users.add_all([bob])
        assert await names(users) == ["alice", "bob"]
        assert await users.remove(alice.id)
        network.lose_the_next_answer()
        with pytest.raises(StorageUnavailable):
            await users.remove(bob.id)
        assert await names(users) == []


async def test_lost_connections_are_replaced(postgres_url: str) -> None:
    async with over_a_bad_network(postgres_url) as (users, network):
        for number in range(5):
            await asyncio.gather(*(users.add(person(f"user{number}-{n}@example.com")) for n in range(8)))
            network.cut()
        assert len(await names(users)) == 40


async def test_a_stopped_server_is_unavailable_in_bounded_time_until_it_returns(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_pool, "CALL_TIMEOUT", 0.5)
    async with over_a_bad_network(postgres_url) as (users, network):
        await users.add(person("alice@example.com"))
        network.refuse()
        await assert_unavailable(users)
        network.refuse(refuses=False)
        await users.add(person("bob@example.com"))
        assert await names(users) == ["alice", "bob"]


async def test_a_frozen_network_is_unavailable_in_bounded_time_until_it_recovers(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_pool, "CALL_TIMEOUT", 0.6)
    monkeypatch.setattr(postgres_pool, "RESPONSE_TIMEOUT", 0.2)
    monkeypatch.setattr(postgres_pool, "CONNECT_TIMEOUT", 0.2)
    async with over_a_bad_network(postgres_url) as (users, network):
        await users.add(person("alice@example.com"))
        network.hold()
        await assert_unavailable(users)
        network.let_go()
        await users.add(person("bob@example.com"))
        # Whoever was told that it was not known may have been added or not.
        assert {"alice", "bob"} <= set(await names(users))


async def assert_unavailable(users: PostgresUsers) -> None:
    attempts = (users.check(), users.add(person("carol@example.com")), names(users), users.outbox.entries())
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [StorageUnavailable] * 4


async def test_when_one_server_hangs_the_other_is_used(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_pool, "RESPONSE_TIMEOUT", 0.5)
    monkeypatch.setattr(postgres_pool, "CONNECT_TIMEOUT", 0.5)
    with proxy(way_to(postgres_url)) as one, proxy(way_to(postgres_url)) as two:
        async with PostgresUsers(by_way_of(one.port, postgres_url, two.port)) as users:
            await users.add(person("alice@example.com"))
            one.hold()
            await asyncio.gather(*(users.add(person(f"user{n}@example.com")) for n in range(10)))
            one.let_go()
            two.refuse()
            await users.add(person("bob@example.com"))
            assert len(await names(users)) == 12


async def test_a_read_only_server_is_not_used(postgres_url: str) -> None:
    with proxy(way_to(postgres_url)) as network:
        url = by_way_of(network.port, postgres_url)
        with pytest.raises(StorageUnavailable, match="TargetServerAttributeNotMatched"):
            await open_and_close(f"{url}&default_transaction_read_only=on")
        await open_and_close(url)


async def test_waiting_for_a_free_connection_ends_in_bounded_time(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with PostgresUsers(postgres_url, pool_size=1) as users:
        async with users._pool._connection():
            waiting = asyncio.create_task(users.check())
            # It has begun to wait, and for longer.
            await asyncio.sleep(0)
            monkeypatch.setattr(postgres_pool, "CALL_TIMEOUT", 0.2)
            with pytest.raises(StorageUnavailable, match=r"^PostgreSQL: no answer in time$"):
                await users.add(person("alice@example.com"))
            assert not waiting.done()
        await waiting
        assert await names(users) == []


async def test_the_pool_size_is_respected(postgres_url: str) -> None:
    async with PostgresUsers(postgres_url, pool_size=3) as users:
        await asyncio.gather(*(users.add(person(f"user{n}@example.com")) for n in range(30)))
        mine = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        assert query(postgres_url, f"{mine} AND application_name = 'usersvc'") == [3]


async def test_idle_connections_are_closed(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'usersvc'"
    monkeypatch.setattr(postgres_pool, "MAX_IDLE_TIME", 2.0)
    async with PostgresUsers(postgres_url, pool_size=5) as users:
        await asyncio.gather(*(users.check() for _ in range(20)))
        assert query(postgres_url, mine) == [5]
        async with asyncio.timeout(DEADLINE):
            while query(postgres_url, mine) != [0]:
                await asyncio.sleep(0.01)
        await asyncio.gather(*(users.check() for _ in range(20)))


async def test_a_lock_held_for_long_is_unavailable_until_it_is_released(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(postgres_pool.SETTINGS, "lock_timeout", "100")
    other = await asyncpg.connect(postgres_url)
    async with PostgresUsers(postgres_url) as users:
        holding = other.transaction()
        await holding.start()
        await other.execute("LOCK TABLE users")
        with pytest.raises(StorageUnavailable, match=r"LockNotAvailableError \(55P03\)"):
            await users.add(person("alice@example.com"))
        await holding.rollback()
        await users.add(person("alice@example.com"))
        assert await names(users) == ["alice"]
    await other.close()


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


# --- being told -----------------------------------------------------------------------------------------------------


async def test_a_listener_is_notified_of_additions_and_retries_of_others(postgres_url: str) -> None:
    heard = asyncio.Event()
    async with (
        PostgresUsers(postgres_url) as other,
        PostgresUsers(postgres_url) as users,
        users.outbox.listen(heard.set),
    ):
        # At the beginning too: there may have been something before.
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


async def test_a_listener_reconnects(postgres_url: str) -> None:
    heard = asyncio.Event()
    async with (
        PostgresUsers(postgres_url) as other,
        over_a_bad_network(postgres_url) as (users, network),
        users.outbox.listen(heard.set),
    ):
        await next_time(heard)
        network.cut()
        # On connecting again, since nobody knows what was missed.
        await next_time(heard)
        await other.add(person("alice@example.com"))
        await next_time(heard)


async def test_many_notifications_are_combined(postgres_url: str) -> None:
    count = 0

    def heard() -> None:
        nonlocal count
        count += 1

    async with (
        PostgresUsers(postgres_url) as other,
        PostgresUsers(postgres_url) as users,
        users.outbox.listen(heard),
    ):
        for number in range(300):
            await other.add(person(f"user{number}@example.com"))
    assert 1 <= count < 100


async def test_a_listener_that_cannot_connect_logs_once_and_retries(
    postgres_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with over_a_bad_network(postgres_url) as (users, network):
        heard = asyncio.Event()
        network.refuse()
        async with users.outbox.listen(heard.set):
            async with asyncio.timeout(DEADLINE):
                while not caplog.records:
                    await asyncio.sleep(0.01)
            network.refuse(refuses=False)
            await next_time(heard)
    assert len([record for record in caplog.records if "cannot listen" in record.getMessage()]) == 1
