"""The real service on PostgreSQL: with several processes, and while its server restarts, hangs or is replaced."""

# ruff: noqa: ASYNC110  # nothing tells when another session waits

import asyncio
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Self

import httpx
import pytest

from tests.e2e.api import person, register
from tests.e2e.launch import SHORT_LEASE
from tests.e2e.server import DEADLINE, SERVE, Service, free_port, run_to_end, running
from tests.postgres import by_way_of, execute, holding, query
from tests.postgres_server import Server, own_server, standby_of
from usersvc.adapters.postgres import PostgresUsers
from usersvc.adapters.postgres import pool as postgres_pool
from usersvc.application.errors import StorageUnavailable
from usersvc.application.idempotency import IdempotencyKey
from usersvc.domain.user import PasswordHash, User

BOUND = 15.0
"""Seconds within which everything is answered, whatever happens: the service promises five, machines may be slow."""
PEOPLE = 6
ROOT = Path(__file__).parents[2]
CERTIFICATE = ROOT / "tests" / "integration" / "localhost.pem"
MAIL = re.compile(r"sent a welcome mail to \S+ for user ([0-9a-f-]{36})")


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


class People:
    """Those who register without end, each anew as soon as answered, until told to stop."""

    def __init__(self, *services: Service) -> None:
        self.acknowledged: list[str] = []
        self.unavailable = 0
        self._news = threading.Condition()
        self._enough = threading.Event()
        self._crowd = ThreadPoolExecutor(PEOPLE)
        self._running = [self._crowd.submit(self._register, services[n % len(services)]) for n in range(PEOPLE)]

    def _register(self, service: Service) -> None:
        with httpx.Client(base_url=service.url, trust_env=False, timeout=BOUND) as client:
            while not self._enough.is_set():
                # With a key, as whoever means to ask again: both ways of storing are used.
                headers = {"Idempotency-Key": token_hex(8)} if len(self.acknowledged) % 2 else {}
                answer = client.post("/register", json=person(), headers=headers)
                with self._news:
                    if answer.status_code == 201:
                        self.acknowledged.append(answer.json()["data"]["id"])
                    else:
                        assert_unavailable(answer)
                        self.unavailable += 1
                    self._news.notify_all()

    def wait_for_more(self, count: int = 30) -> None:
        """Wait until so many more were acknowledged."""
        with self._news:
            wanted = len(self.acknowledged) + count
            assert self._news.wait_for(lambda: len(self.acknowledged) >= wanted, DEADLINE), "nobody is registered"

    def stop(self) -> None:
        """Let everybody have their answer, and see that all answers were fit ones."""
        self._enough.set()
        for somebody in self._running:
            somebody.result()
        self._crowd.shutdown()


def assert_unavailable(answer: httpx.Response) -> None:
    assert (answer.status_code, answer.json()["code"]) == (503, "storage-unavailable"), answer.text
    assert int(answer.headers["Retry-After"]) > 0


def wait_until_ready(service: Service, *, is_ready: bool = True) -> None:
    deadline = time.monotonic() + DEADLINE
    with httpx.Client(base_url=service.url, trust_env=False, timeout=BOUND) as client:
        while (answer := client.get("/readyz")).is_success != is_ready:
            assert time.monotonic() < deadline, answer.text
            time.sleep(0.02)
        if not is_ready:
            assert_unavailable(answer)
        assert client.get("/livez").status_code == 200


def assert_nothing_lost(url: str, people: People, *services: Service) -> None:
    """Everybody acknowledged is there, once, and everybody who is there is told."""
    deadline = time.monotonic() + DEADLINE
    while waiting := query(url, "SELECT id FROM outbox"):
        assert time.monotonic() < deadline, f"{len(waiting)} wait to be told"
        time.sleep(0.05)
    stored = Counter(str(user_id) for user_id in query(url, "SELECT id FROM users"))
    assert not set(people.acknowledged) - set(stored), "an acknowledged user is lost"
    assert len(people.acknowledged) == len(set(people.acknowledged))
    assert max(stored.values()) == 1
    for service in services:
        service.stop()
        assert "Application shutdown complete" in service.output
    told = {user_id for service in services for user_id in MAIL.findall(service.output)}
    assert told == set(stored), "somebody was not told, or somebody was who is not there"
    for service in services:
        assert "Traceback" not in service.output


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_of_the_server_under_load_loses_nobody(server: Server, tmp_path: Path, mode: str) -> None:
    with serving(tmp_path, server.url) as service:
        people = People(service)
        people.wait_for_more()
        server.stop(mode)
        wait_until_ready(service, is_ready=False)
        server.start()
        people.wait_for_more()
        wait_until_ready(service)
        people.stop()
        assert_nothing_lost(server.url, people, service)


def test_a_server_that_hangs_under_load_is_told_until_it_goes_on(server: Server, tmp_path: Path) -> None:
    with serving(tmp_path, server.url) as service:
        people = People(service)
        people.wait_for_more()
        server.freeze()
        wait_until_ready(service, is_ready=False)
        server.thaw()
        people.wait_for_more()
        wait_until_ready(service)
        people.stop()
        assert_nothing_lost(server.url, people, service)


@pytest.mark.parametrize("fault", [Server.stop, Server.freeze])
def test_when_another_server_takes_over_under_load_nobody_is_lost(
    tmp_path: Path, fault: Callable[[Server], None]
) -> None:
    with ExitStack() as stack:
        primary = stack.enter_context(own_server())
        standby = stack.enter_context(standby_of(primary))
        service = stack.enter_context(serving(tmp_path, by_way_of(primary.port, primary.url, standby.port)))
        people = People(service)
        people.wait_for_more()
        fault(primary)
        standby.promote()
        people.wait_for_more()
        wait_until_ready(service)
        people.stop()
        assert_nothing_lost(standby.url, people, service)


@pytest.mark.parametrize("key", [None, IdempotencyKey.named("0b9f6f1c")])
async def test_nobody_is_acknowledged_before_the_other_server_has_them_though_a_connection_was_lost(
    key: IdempotencyKey | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres_pool, "CALL_TIMEOUT", 1.0)
    monkeypatch.setattr(postgres_pool, "RESPONSE_TIMEOUT", 0.7)
    waiting = "FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    alice = User.register(email="alice@example.com", password="correct horse battery", age=30)
    user = alice.complete(PasswordHash("$hash"), at=datetime.now(UTC))
    with own_server() as primary, standby_of(primary) as standby:
        async with PostgresUsers(primary.url) as users:
            standby.freeze()
            adding = asyncio.create_task(users.add(user, key=key))
            async with asyncio.timeout(DEADLINE):
                while not query(primary.url, f"SELECT pid {waiting}"):
                    await asyncio.sleep(0.01)
            # What it has stored can be seen from now on, on this server alone.
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


def test_with_every_connection_taken_it_answers_in_bounded_time(server: Server, tmp_path: Path) -> None:
    with serving(tmp_path, server.url, USERSVC_DATABASE_POOL_SIZE="1") as service:
        people = People(service)
        people.wait_for_more()
        before = people.unavailable
        # Whoever has the only connection waits for the lock, and the others for the connection.
        with holding(server.url, "LOCK TABLE users"):
            wait_until_ready(service, is_ready=False)
        people.wait_for_more()
        wait_until_ready(service)
        people.stop()
        assert people.unavailable > before
        assert_nothing_lost(server.url, people, service)


def test_readers_of_everybody_who_do_not_read_hold_no_transaction_and_no_connection(
    server: Server, tmp_path: Path
) -> None:
    everybody = b"GET /users HTTP/1.1\r\nHost: test\r\nAccept: application/x-ndjson\r\nConnection: close\r\n\r\n"
    # More than all buffers on the way hold.
    crowd = 100_000
    transactions = "SELECT count(*) FROM pg_stat_activity WHERE state LIKE 'idle in transaction%'"
    with serving(tmp_path, server.url, USERSVC_DATABASE_POOL_SIZE="1") as service, ExitStack() as stack:
        execute(
            server.url,
            f"""
            INSERT INTO users SELECT nextval('users_position'), gen_random_uuid(), 'u' || n || '@example.com',
                'u' || n || '@example.com', 30, 'none', now() FROM generate_series(1, {crowd}) AS n
            """,
        )
        readers = []
        for _ in range(5):
            reader = stack.enter_context(socket.socket())
            reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            reader.settimeout(DEADLINE)
            reader.connect(service.address)
            reader.sendall(everybody)
            assert reader.recv(100).startswith(b"HTTP/1.1 200 ")
            readers.append(reader)
        deadline = time.monotonic() + DEADLINE
        while query(server.url, transactions) != [0]:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        with service.client() as client:
            register(client)
            answer = client.get("/users", headers={"Accept": "application/x-ndjson"})
            assert answer.text.count("\n") == crowd + 1
        server.stop("immediate")
        server.start()
        # Whoever goes on reading gets all the rest, whoever goes is no error.
        rest = b"".join(iter(lambda: readers[0].recv(2**20), b""))
        assert rest.endswith(b"0\r\n\r\n")
        assert rest.count(b'"id"') == crowd + 1
        for reader in readers:
            reader.close()
        with service.client() as client:
            assert client.get("/users?limit=1").status_code == 200
        assert not service.errors


def test_several_processes_share_the_database_and_the_outbox(server: Server, tmp_path: Path) -> None:
    settings = {"USERSVC_DATABASE_URL": server.url, "USERSVC_WORKERS": "2", "USERSVC_PORT": str(free_port())}
    with running(tmp_path, settings) as service:
        mailboxes = [f"{token_hex(8)}@example.com" for _ in range(20)]

        def contest(email: str) -> int:
            answer = httpx.post(f"{service.url}/register", json=person(email=email), trust_env=False, timeout=BOUND)
            return answer.status_code

        with ThreadPoolExecutor(8) as crowd:
            outcomes = Counter(crowd.map(contest, mailboxes * 4))
        assert outcomes == {201: 20, 409: 60}
        people = People(service)
        people.wait_for_more()
        people.stop()
        stored = [str(user_id) for user_id in query(server.url, "SELECT id FROM users")]
        service.wait_for_output(MAIL, len(stored))
        service.stop()
        assert sorted(MAIL.findall(service.output)) == sorted(stored), "somebody was told twice, or not at all"


def test_a_server_that_is_missing_stops_the_start_in_one_line_without_its_address(tmp_path: Path) -> None:
    port = free_port()
    settings = {"USERSVC_DATABASE_URL": f"postgresql://alice:hunter2@127.0.0.1:{port}/people"}
    for workers in ("1", "2"):
        refused = run_to_end(tmp_path, {**settings, "USERSVC_WORKERS": workers})
        said = refused.stdout + refused.stderr
        assert refused.returncode == 3
        assert "PostgreSQL: ConnectionRefusedError" in said
        assert "Traceback" not in said
        for secret in ("alice", "hunter2", str(port), "people"):
            assert secret not in said


def test_with_verify_full_only_a_server_that_somebody_vouches_for_is_talked_to(server: Server, tmp_path: Path) -> None:
    pem = server.folder / "server.pem"
    shutil.copy(CERTIFICATE, pem)
    pem.chmod(0o600)
    owner = (server.folder / "data").stat()
    os.chown(pem, owner.st_uid, owner.st_gid)
    nobody = tmp_path / "nobody.pem"
    nobody.touch()
    server.set("ssl_cert_file", str(pem))
    server.set("ssl_key_file", str(pem))
    server.set("ssl", "on")

    def checked(host: str, authorities: Path) -> subprocess.CompletedProcess[str]:
        url = f"{server.url}?sslmode=verify-full&sslrootcert={authorities}".replace("127.0.0.1", host)
        return run_to_end(tmp_path, {"USERSVC_DATABASE_URL": url}, (*SERVE[:-1], "outbox", "list"))

    try:
        assert checked("localhost", CERTIFICATE).returncode == 0
        # It is not who was asked for; nobody vouches for it; there is nobody who could.
        for refused, why in (
            (checked("127.0.0.1", CERTIFICATE), "SSLCertVerificationError"),
            (checked("localhost", nobody), "SSLError"),
            (checked("localhost", tmp_path / "missing"), "FileNotFoundError"),
        ):
            assert refused.returncode != 0
            assert f"PostgreSQL: {why}" in refused.stdout + refused.stderr
            assert str(server.port) not in refused.stdout + refused.stderr
    finally:
        server.set("ssl", "off")


def test_the_outbox_is_looked_after_from_another_process(server: Server, tmp_path: Path) -> None:
    with serving(tmp_path, server.url) as service:
        with service.client() as client:
            register(client)
        service.wait_for_output(MAIL)
        execute(
            server.url,
            """
            INSERT INTO outbox (user_id, email, occurred_at, attempts, reason)
            SELECT id, email, registered_at, 60, 'nobody lives there' FROM users
            """,
        )
        settings = {"USERSVC_DATABASE_URL": server.url}
        listed = run_to_end(tmp_path, settings, (*SERVE[:-1], "outbox", "list"))
        assert "dead-lettered\tattempts=60" in listed.stdout
        done = run_to_end(tmp_path, settings, (*SERVE[:-1], "outbox", "retry", "--all"))
        assert done.stdout == "1 rescheduled\n", done.stderr
        service.wait_for_output(MAIL, 2)


class _Asking:
    """A server that asks for a clear-text password and rejects it."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.told: list[bytes] = []
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join(DEADLINE)
        self._listener.close()

    def _ask(self) -> None:
        connection, _ = self._listener.accept()
        with connection, connection.makefile("rb") as stream:
            stream.read(int.from_bytes(stream.read(4)) - 4)
            # AuthenticationCleartextPassword
            connection.sendall(b"R" + (8).to_bytes(4) + (3).to_bytes(4))
            stream.read(1)
            self.told.append(stream.read(int.from_bytes(stream.read(4)) - 4).rstrip(b"\0"))
            fields = b"SFATAL\0C28P01\0Mno way in for that password\0\0"
            connection.sendall(b"E" + (4 + len(fields)).to_bytes(4) + fields)


@pytest.mark.parametrize("way", ["URL", "PGPASSWORD", "PGPASSFILE"])
def test_a_password_may_be_outside_the_url_and_is_never_printed(tmp_path: Path, way: str) -> None:
    with _Asking() as server:
        passwords = tmp_path / "passwords"
        passwords.write_text(f"127.0.0.1:{server.port}:users:somebody:S3cr3t p@ss\n")
        passwords.chmod(0o600)
        settings = {
            "URL": {},
            "PGPASSWORD": {"PGPASSWORD": "S3cr3t p@ss"},
            "PGPASSFILE": {"PGPASSFILE": str(passwords)},
        }[way]
        user = "somebody:S3cr3t%20p%40ss" if way == "URL" else "somebody"
        settings["USERSVC_DATABASE_URL"] = f"postgresql://{user}@127.0.0.1:{server.port}/users?sslmode=disable"
        ended = run_to_end(tmp_path, settings, [sys.executable, "-m", "usersvc", "users", "list"])
    assert server.told == [b"S3cr3t p@ss"]
    assert ended.returncode == 1
    assert ended.stderr.startswith("usersvc: PostgreSQL: ")
    assert "S3cr3t" not in ended.stdout + ended.stderr
