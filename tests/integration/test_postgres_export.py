"""Listing all users from PostgreSQL: a reader holds nothing between two pages, and a lost connection ends no list."""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing

import asyncpg
import pytest

from tests.contract.test_batches import NAMES, all_batches, many, names, read
from tests.postgres import by_way_of, query, way_to
from tests.tcp_proxy import Proxy, proxy
from usersvc.adapters.postgres import PostgresUsers
from usersvc.adapters.postgres import pool as postgres_pool
from usersvc.application.errors import StorageUnavailable

OTHER_SESSIONS = "FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"


@pytest.fixture
async def users(postgres_url: str) -> AsyncIterator[PostgresUsers]:
    async with PostgresUsers(postgres_url, pool_size=1) as users:
        await users.add_all(many())
        yield users


@pytest.fixture
def network(postgres_url: str) -> Iterator[Proxy]:
    with proxy(way_to(postgres_url)) as network:
        yield network


@pytest.fixture
async def remote(postgres_url: str, network: Proxy) -> AsyncIterator[PostgresUsers]:
    async with PostgresUsers(by_way_of(network.port, postgres_url), pool_size=1) as users:
        await users.add_all(many())
        yield users


async def test_slow_readers_hold_no_transaction_snapshot_lock_or_connection(
    users: PostgresUsers, postgres_url: str
) -> None:
    readers = [all_batches(users) for _ in range(5)]
    found = [names(await anext(batches)) + names(await anext(batches)) for batches in readers]
    # The only connection of the pool is idle, outside of a transaction.
    assert query(postgres_url, f"SELECT state {OTHER_SESSIONS}") == ["idle"]
    assert query(postgres_url, f"SELECT count(backend_xmin) {OTHER_SESSIONS}") == [0]
    await users.check()
    migration = await asyncpg.connect(postgres_url)
    async with migration.transaction():
        await migration.execute("LOCK TABLE users NOWAIT")
    await migration.close()
    for begun, batches in zip(found, readers, strict=True):
        assert begun + await read(batches) == NAMES


@pytest.mark.parametrize("batches_read", [1, 2, 3])
async def test_a_list_continues_after_connections_were_lost(
    remote: PostgresUsers, network: Proxy, batches_read: int
) -> None:
    async with aclosing(all_batches(remote)) as batches:
        found = [name for _ in range(batches_read) for name in names(await anext(batches))]
        network.cut()
        found += [name async for batch in batches for name in names(batch)]
    assert found == NAMES


@pytest.mark.parametrize("fault", [Proxy.refuse, Proxy.hold])
async def test_a_server_lost_in_the_middle_is_reported_in_bounded_time(
    remote: PostgresUsers, network: Proxy, monkeypatch: pytest.MonkeyPatch, fault: Callable[[Proxy], None]
) -> None:
    monkeypatch.setattr(postgres_pool, "RESPONSE_TIMEOUT", 0.2)
    monkeypatch.setattr(postgres_pool, "CONNECT_TIMEOUT", 0.2)
    monkeypatch.setattr(postgres_pool, "CALL_TIMEOUT", 0.5)
    async with aclosing(all_batches(remote)) as batches:
        found = names(await anext(batches)) + names(await anext(batches))
        fault(network)
        with pytest.raises(StorageUnavailable):
            await anext(batches)
    network.refuse(refuses=False)
    network.let_go()
    assert found + await read(all_batches(remote, after=len(found))) == NAMES
