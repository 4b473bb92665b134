"""The service on PostgreSQL: with several processes, and while the server restarts, hangs or is replaced."""

# ruff: noqa: ASYNC110  # no event reports that another session waits

import asyncio
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.e2e.api import assert_problem
from tests.e2e.launch import SHORT_LEASE
from tests.e2e.server import DEADLINE, Service, free_port, run_to_end, running
from tests.fakes import person
from tests.postgres import on_ports, open_and_close, query
from tests.postgres_server import Server, own_server, standby_of
from tests.soak.many_hosts import MAIL, Clients, registrations
from usersvc.adapters.postgres import PostgresUsers
from usersvc.adapters.postgres import pool as postgres_pool
from usersvc.application.errors import StorageUnavailable
from usersvc.application.idempotency import IdempotencyKey

BOUND = 15.0
"""Seconds within which every response arrives. The service promises five, but the host may be slow."""
CERTIFICATE = Path(__file__).parents[1] / "integration" / "localhost.pem"


@pytest.fixture(scope="module")
def own() -> Iterator[Server]:
    with own_server() as server:
        yield server


@pytest.fixture
def server(own: Server) -> Server:
    query(own.url, "DROP SCHEMA public CASCADE")
    query(own.url, "CREATE SCHEMA public")
    return own


@contextmanager
def serving(folder: Path, url: str, **settings: str) -> Iterator[Service]:
    with running(folder, {"USERSVC_DATABASE_URL": url, **settings}, SHORT_LEASE) as service:
        yield service


def start_clients(service: Service) -> Clients:
    clients = Clients(service, registrations(mailboxes=1_000_000, contested=0))
    clients.wait_until_acknowledged(30)
    return clients


def wait_until_ready(service: Service, *, is_ready: bool = True) -> None:
    deadline = time.monotonic() + DEADLINE
    with httpx.Client(base_url=service.url, trust_env=False, timeout=BOUND) as client:
        while (response := client.get("/readyz")).is_success != is_ready:
            assert time.monotonic() < deadline, response.text
            time.sleep(0.02)
        if not is_ready:
            assert_problem(response, 503, "storage-unavailable")
            assert int(response.headers["Retry-After"]) > 0
        assert client.get("/livez").status_code == 200


def assert_service_recovers_without_loss(server: Server, clients: Clients, service: Service) -> None:
    """Every acknowledged user is stored once, and every stored user gets a mail."""
    clients.wait_until_acknowledged(len(clients.acknowledged) + 30)
    wait_until_ready(service)
    clients.stop()
    server.wait_until_outbox_is_empty(DEADLINE)
    stored = [str(user_id) for user_id in query(server.url, "SELECT id FROM users")]
    assert [user_id for [(user_id, _)] in clients.acknowledged.values() if user_id not in stored] == []
    service.stop()
    assert "Application shutdown complete" in service.output
    assert set(MAIL.findall(service.output)) == set(stored), "a user has no mail, or a mail has no user"
    assert "Traceback" not in service.output


@pytest.mark.parametrize(
    ("fault", "repair"),
    [
        (partial(Server.stop, mode="fast"), Server.start),
        (partial(Server.stop, mode="immediate"), Server.start),
        (Server.freeze, Server.thaw),
    ],
    ids=["restart", "crash", "hang"],
)
def test_no_user_is_lost_by_a_fault_of_the_server_under_load(
    server: Server, tmp_path: Path, fault: Callable[[Server], None], repair: Callable[[Server], None]
) -> None:
    with serving(tmp_path, server.url) as service:
        clients = start_clients(service)
        fault(server)
        wait_until_ready(service, is_ready=False)
        repair(server)
        assert_service_recovers_without_loss(server, clients, service)


@pytest.mark.parametrize("fault", [Server.stop, Server.freeze])
def test_no_user_is_lost_when_another_server_takes_over_under_load(
    tmp_path: Path, fault: Callable[[Server], None]
) -> None:
    with (
        own_server() as primary,
        standby_of(primary) as standby,
        serving(tmp_path, on_ports(primary.url, primary.port, standby.port)) as service,
    ):
        clients = start_clients(service)
        fault(primary)
        standby.promote()
        assert_service_recovers_without_loss(standby, clients, service)


@pytest.mark.parametrize("key", [None, IdempotencyKey.named("0b9f6f1c")])
async def test_a_user_is_acknowledged_only_when_the_standby_has_it_also_after_a_lost_connection(
    key: IdempotencyKey | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_pool, "CALL_TIMEOUT", 1.0)
    monkeypatch.setattr(postgres_pool, "RESPONSE_TIMEOUT", 0.7)
    waiting = "FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    user = person("alice@example.com", at=datetime.now(UTC))
    with own_server() as primary, standby_of(primary) as standby:
        async with PostgresUsers(primary.url) as users:
            standby.freeze()
            adding = asyncio.create_task(users.add(user, key=key))
            async with asyncio.timeout(DEADLINE):
                while not query(primary.url, f"SELECT pid {waiting}"):
                    await asyncio.sleep(0.01)
            # The user is visible now, but only on this server.
            assert query(primary.url, f"SELECT pg_terminate_backend(pid) {waiting}") == [True]
            with pytest.raises(StorageUnavailable):
                await adding
            assert await users.find(user.id) is not None
            if key is not None:
                with pytest.raises(StorageUnavailable):
                    await users.registered_with(key, at=user.registered_at)
            standby.thaw()
            await users.add(user) if key is None else await users.registered_with(key, at=user.registered_at)
        primary.stop()
        standby.promote()
        assert query(standby.url, "SELECT email FROM users") == ["alice@example.com"]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_missing_server_stops_the_start_in_one_line_without_its_address(tmp_path: Path, workers: str) -> None:
    port = free_port()
    url = f"postgresql://alice:hunter2@127.0.0.1:{port}/people"
    ended = run_to_end(tmp_path, {"USERSVC_DATABASE_URL": url, "USERSVC_WORKERS": workers})
    output = ended.stdout + ended.stderr
    assert ended.returncode == 3
    assert "PostgreSQL: ConnectionRefusedError" in output
    for absent in ("Traceback", "alice", "hunter2", str(port), "people"):
        assert absent not in output


async def test_with_verify_full_the_certificate_of_the_server_is_verified(server: Server, tmp_path: Path) -> None:
    pem = server.folder / "server.pem"
    shutil.copy(CERTIFICATE, pem)
    pem.chmod(0o600)
    owner = (server.folder / "data").stat()
    os.chown(pem, owner.st_uid, owner.st_gid)
    no_authority = tmp_path / "empty.pem"
    no_authority.touch()
    for setting, value in {"ssl_cert_file": str(pem), "ssl_key_file": str(pem), "ssl": "on"}.items():
        server.set(setting, value)
    url = f"{server.url}?sslmode=verify-full&sslrootcert="
    by_name = url.replace("127.0.0.1", "localhost")
    try:
        await open_and_close(f"{by_name}{CERTIFICATE}")
        for refused, error in (
            (f"{url}{CERTIFICATE}", "SSLCertVerificationError"),
            (f"{by_name}{no_authority}", "SSLError"),
            (f"{by_name}{tmp_path}/missing", "FileNotFoundError"),
        ):
            with pytest.raises(StorageUnavailable, match=f"^PostgreSQL: {error}$"):
                await open_and_close(refused)
    finally:
        server.set("ssl", "off")
