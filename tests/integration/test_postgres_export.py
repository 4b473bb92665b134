"""How ``PostgresUsers`` reads everybody from a cursor: whom it waits for and how long, and what it does without."""

# ruff: noqa: ASYNC110  # nothing tells when another session ends

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import asyncpg
import pytest

from tests.contract.test_batches import CROWD, NAMES, crowd, everybody, names, read
from tests.e2e.server import DEADLINE
from tests.postgres import by_way_of, execute, query, way_to
from tests.tcp_proxy import Proxy, proxy
from usersvc.adapters import postgres_export, postgres_pool
from usersvc.adapters.postgres import PostgresUsers
from usersvc.adapters.postgres_export import CURSORS
from usersvc.application.ports import Order, StorageUnavailable

OTHERS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


def transactions(url: str) -> int:
    """How many are open: but for cursors, all of them end at once."""
    [count] = query(url, f"SELECT count(*) {OTHERS} AND state LIKE 'idle in transaction%'")
    return int(count)


async def until_transactions(url: str, count: int) -> None:
    async with asyncio.timeout(DEADLINE):
        while transactions(url) != count:
            await asyncio.sleep(0.01)


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine may be slow; tests of time-outs have shorter ones."""
    monkeypatch.setattr(postgres_export, "LONGEST", DEADLINE)


@pytest.fixture
async def users(postgres_url: str) -> AsyncIterator[PostgresUsers]:
    async with PostgresUsers(postgres_url, pool_size=1) as users:
        await users.add_all(crowd())
        yield users


@pytest.fixture
def network(postgres_url: str) -> Iterator[Proxy]:
    with proxy(way_to(postgres_url)) as network:
        yield network


@pytest.fixture
async def remote(postgres_url: str, network: Proxy) -> AsyncIterator[PostgresUsers]:
    async with PostgresUsers(by_way_of(network.port, postgres_url), pool_size=1) as users:
        await users.add_all(crowd())
        yield users


async def test_short_lists_take_no_connection_of_their_own(users: PostgresUsers, postgres_url: str) -> None:
    for user in crowd()[5:]:
        await users.remove(user.id)
    assert await read(everybody(users)) == NAMES[:5]
    assert query(postgres_url, f"SELECT count(*) {OTHERS}") == [1]


async def test_a_cursor_ends_with_the_list(users: PostgresUsers, postgres_url: str) -> None:
    async with aclosing(everybody(users)) as batches:
        await anext(batches)
        assert transactions(postgres_url) == 0
        await anext(batches)
        assert transactions(postgres_url) == 1
        # What is running there may change nothing.
        assert query(postgres_url, f"SELECT query {OTHERS} AND state = 'idle in transaction'") == [
            "FETCH FROM everybody"
        ]
        rest = [batch async for batch in batches]
    await until_transactions(postgres_url, 0)
    assert sum(len(names(batch)) for batch in rest) == CROWD - 2 * len(names(rest[0]))


async def test_a_cursor_ends_with_its_reader(users: PostgresUsers, postgres_url: str) -> None:
    batches = everybody(users)
    await anext(batches)
    await anext(batches)
    assert transactions(postgres_url) == 1
    await batches.aclose()
    assert query(postgres_url, f"SELECT count(*) {OTHERS}") == [1]


async def test_a_reader_who_does_not_read_on_holds_no_connection(
    users: PostgresUsers, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_export, "LONGEST", 0.05)
    slow = [everybody(users) for _ in range(2 * CURSORS)]
    found = [names(await anext(batches)) + names(await anext(batches)) for batches in slow]
    await until_transactions(postgres_url, 0)
    # Nor a place: others have a cursor meanwhile.
    monkeypatch.setattr(postgres_export, "LONGEST", DEADLINE)
    other = everybody(users)
    await anext(other)
    await anext(other)
    assert transactions(postgres_url) == 1
    await other.aclose()
    for begun, batches in zip(found, slow, strict=True):
        assert begun + await read(batches) == NAMES


async def test_a_slow_reader_is_given_no_cursor(
    users: PostgresUsers, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_export, "LONGEST", 0.0)
    async with aclosing(everybody(users)) as batches:
        async for _ in batches:
            assert query(postgres_url, f"SELECT count(*) {OTHERS}") == [1]


async def test_no_more_cursors_are_open_than_are_allowed(users: PostgresUsers, postgres_url: str) -> None:
    readers = [everybody(users) for _ in range(3 * CURSORS)]
    found = [names(await anext(batches)) + names(await anext(batches)) for batches in readers]
    assert transactions(postgres_url) == CURSORS
    # The pool's one is there for everybody else.
    await users.check()
    for begun, batches in zip(found, readers, strict=True):
        assert begun + await read(batches) == NAMES
    assert await read(everybody(users)) == NAMES
    await until_transactions(postgres_url, 0)


async def test_no_snapshot_gets_old(users: PostgresUsers, postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    oldest = f"SELECT coalesce(max(age(backend_xmin)), 0) {OTHERS}"
    monkeypatch.setattr(postgres_export, "BATCH", 100)
    monkeypatch.setattr(postgres_export, "LONGEST", 0.01)
    ages = []
    async with aclosing(everybody(users)) as batches:
        async for batch in batches:
            ages.append(query(postgres_url, oldest)[0])
            assert len(names(batch)) == 100 or names(batch)[-1] == NAMES[-1]
            await users.check()
            await asyncio.sleep(0.01)
    # Everybody who asked has made the snapshots before look older by one.
    assert len(ages) == CROWD // 100 + 1
    assert max(ages) <= 2


@pytest.mark.parametrize("batches_read", [1, 2, 3])
async def test_a_list_goes_on_when_connections_are_lost(
    remote: PostgresUsers, network: Proxy, batches_read: int
) -> None:
    async with aclosing(everybody(remote)) as batches:
        found = [name for _ in range(batches_read) for name in names(await anext(batches))]
        network.cut()
        found += [name async for batch in batches for name in names(batch)]
    assert found == NAMES


async def test_a_list_goes_on_when_its_session_is_ended_by_somebody(users: PostgresUsers, postgres_url: str) -> None:
    async with aclosing(everybody(users)) as batches:
        found = names(await anext(batches)) + names(await anext(batches))
        assert query(postgres_url, f"SELECT pg_terminate_backend(pid) {OTHERS} AND state = 'idle in transaction'") == [
            True
        ]
        found += [name async for batch in batches for name in names(batch)]
    assert found == NAMES


async def test_what_cannot_be_read_within_patience_is_told(
    remote: PostgresUsers, network: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_pool, "PATIENCE", 0.5)
    async with aclosing(everybody(remote)) as batches:
        await anext(batches)
        await anext(batches)
        network.refuse()
        with pytest.raises(StorageUnavailable):
            await anext(batches)
    network.refuse(refuses=False)
    assert await read(everybody(remote)) == NAMES


async def test_where_there_is_no_cursor_to_be_had_lists_are_pages(remote: PostgresUsers, network: Proxy) -> None:
    attempts = 0

    def refuse() -> socket.socket:
        nonlocal attempts
        attempts += 1
        raise ConnectionRefusedError

    network.lead_to(refuse)
    assert await read(everybody(remote)) == NAMES
    assert attempts == 1


@pytest.mark.parametrize("fails", ["BEGIN", "DECLARE"])
async def test_a_server_that_knows_no_such_cursor_has_pages(
    users: PostgresUsers, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    declaration = postgres_export._declaration
    monkeypatch.setattr(postgres_export, "_declaration", lambda *asked: declaration(*asked).replace(fails, "nonsense"))
    assert await read(everybody(users)) == NAMES


async def test_a_server_that_hangs_holds_nobody(
    remote: PostgresUsers, network: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (postgres_pool, postgres_export):
        monkeypatch.setattr(module, "ANSWER_TIMEOUT", 0.2)
    monkeypatch.setattr(postgres_pool, "CONNECT_TIMEOUT", 0.2)
    monkeypatch.setattr(postgres_pool, "PATIENCE", 0.5)
    async with aclosing(everybody(remote)) as batches:
        found = names(await anext(batches)) + names(await anext(batches))
        network.hold()
        with pytest.raises(StorageUnavailable):
            await anext(batches)
    network.let_go()
    assert await read(everybody(remote)) == NAMES
    assert found == NAMES[: len(found)]


async def test_who_goes_while_a_batch_is_read_frees_everything(
    remote: PostgresUsers, network: Proxy, postgres_url: str
) -> None:
    for _ in range(2 * CURSORS):
        batches = everybody(remote)
        await anext(batches)
        await anext(batches)
        network.hold()
        reading = asyncio.ensure_future(anext(batches))
        # It has asked, and waits for the answer.
        await asyncio.sleep(0)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        network.let_go()
        await until_transactions(postgres_url, 0)
    await remote.check()
    assert await read(everybody(remote)) == NAMES


async def test_a_locked_table_is_told_and_frees_everything(
    users: PostgresUsers, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(postgres_pool.SETTINGS, "lock_timeout", "100")
    async with PostgresUsers(postgres_url) as impatient, aclosing(everybody(impatient)) as batches:
        await anext(batches)
        other = await asyncpg.connect(postgres_url)
        async with other.transaction():
            await other.execute("LOCK TABLE users")
            with pytest.raises(StorageUnavailable, match="55P03"):
                await anext(batches)
        await other.close()
        await until_transactions(postgres_url, 0)
        assert await read(everybody(impatient)) == NAMES


async def test_everybody_is_read_in_order_of_an_index_whatever_the_statistics_say(
    users: PostgresUsers, postgres_url: str
) -> None:
    # As on a new table that nobody has analyzed yet, and the other way round.
    for statistics in ("DELETE FROM pg_statistic WHERE starelid = 'users'::regclass", "ANALYZE users"):
        execute(postgres_url, statistics)
        for order in Order:
            begin, _, select = postgres_export._declaration(order, 5).partition(
                "DECLARE everybody NO SCROLL CURSOR FOR"
            )
            connection = await asyncpg.connect(postgres_url)
            await connection.execute(begin)
            plan = "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN {select}"))
            await connection.close()
            assert plan.count("users_pkey") == 2, plan
            assert "Sort" not in plan
            assert "Seq Scan" not in plan


async def test_whoever_changes_the_table_waits_for_no_reader(
    users: PostgresUsers, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_export, "LONGEST", 0.3)
    slow = [everybody(users) for _ in range(CURSORS)]
    for batches in slow:
        await anext(batches)
        await anext(batches)
    migration = await asyncpg.connect(postgres_url)
    async with asyncio.timeout(DEADLINE), migration.transaction():
        waiting = asyncio.ensure_future(migration.execute("LOCK TABLE users"))
        while not waiting.done() and query(postgres_url, "SELECT count(*) FROM pg_locks WHERE NOT granted") == [0]:
            await asyncio.sleep(0.01)
        # Behind the one who waits.
        found = asyncio.ensure_future(users.find(crowd()[0].id))
        await waiting
    await migration.close()
    assert await found is not None
    for batches in slow:
        await batches.aclose()
