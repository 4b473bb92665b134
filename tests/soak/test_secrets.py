"""Secrets stay secret: a hostile run at debug level, and all that came out of it searched for every one of them."""

import base64
import json
import socketserver
import sqlite3
import threading
import traceback
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from urllib.parse import quote

import httpx
import pytest

from tests.e2e.api import person
from tests.e2e.server import Service, break_reads, run_to_end, running
from tests.e2e.test_codes import FAILING
from usersvc.adapters.bcrypt.hasher import BcryptPasswordHasher
from usersvc.config import Settings
from usersvc.domain.errors import ValidationFailed
from usersvc.domain.password import Password, PasswordHash
from usersvc.domain.user import User

PEPPER, TOKEN, MAIL_SECRET = (f"{kind}-{token_hex(8)}" for kind in ("pepper", "token", "mail"))
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@dataclass
class HostileRun:
    """Everything that a service wrote and answered."""

    said: list[str] = field(default_factory=list)
    passwords: list[str] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    stored: bytes = b""

    def password(self) -> str:
        self.passwords.append(f"Pass-{token_hex(8)}!")
        return self.passwords[-1]

    def ask(self, client: httpx.Client, method: str, target: str, **request: object) -> None:
        answer = client.request(method, target, **request)  # type: ignore[arg-type]  # whatever httpx takes
        self.said += [str(answer.headers), answer.text]


def attack(run: HostileRun, service: Service) -> None:
    """Send secrets where they belong and where they do not."""
    with service.client() as client:
        run.ask(client, "POST", "/register", json=person(password=run.password()))
        mistaken = person(password=run.password())
        for body in (
            {**mistaken, "age": 3},
            {**mistaken, "email": "nobody"},
            {**mistaken, "extra": mistaken["password"]},
            {**mistaken, "email": run.password()},
            {**mistaken, "age": run.password()},
            {**mistaken, "password": [run.password()]},
            {**mistaken, "password": {run.password(): 1}},
            {**mistaken, "password": run.password() * 40},
            {"email": f"{(secret := run.password())}@example.com", "password": secret, "age": 30},
            [run.password()],
            run.password(),
        ):
            run.ask(client, "POST", "/register", json=body)
        json_type = {"Content-Type": "application/json"}
        secret = run.password()
        for raw in (
            f'{{"password": "{secret}"',
            f'{{"password": "{secret}", "password": "{secret}"}}',
            f'{{"password": "{secret}", "age": NaN}}',
            f'{{"password": "{secret}"}}\ud800',
            f"password={secret}",
        ):
            run.ask(client, "POST", "/register", content=raw.encode("utf-8", "surrogatepass"), headers=json_type)
            run.ask(client, "POST", "/register", content=raw.encode("utf-8", "surrogatepass"))
        for target in ("/users?email={}", "/users?limit={}", "/users?cursor={}", "/users/{}", "/problems/{}", "/{}"):
            run.ask(client, "GET", target.format(quote(run.password())), headers=BEARER)
        run.ask(client, "GET", "/users", headers={"Authorization": f"Bearer {run.password()}"})
        run.ask(client, "GET", "/users", auth=("admin", run.password()))
        run.ask(client, "GET", "/livez", headers={"Accept": run.password(), "Cookie": f"a={run.password()}"})
        run.ask(client, "POST", "/register", json=mistaken, headers={"Accept": "text/html"})
        run.ask(client, "POST", "/register", json=mistaken, params={"password": mistaken["password"]})
        run.ask(client, "POST", "/register", json=mistaken | {"password": run.password() * 1000})
        run.ask(client, "PUT", "/register", json=mistaken)
        keyed = {"Idempotency-Key": run.password()}
        run.ask(client, "POST", "/register", json=person(password=run.password()), headers=keyed)
        run.ask(client, "POST", "/register", json=person(password=run.password()), headers=keyed)
        for known in ("/users", "/openapi.json", "/docs", "/problems/unauthorized", "/readyz", "/metrics", "/"):
            run.ask(client, "GET", known, headers=BEARER)
        run.addresses += [user["email"] for user in client.get("/users", headers=BEARER).json()["data"]]
    service.talk(f"GET /{run.password()} HTTP/1.1\r\n{run.password()}\r\n\r\n".encode())
    service.talk(f"{run.password()}\r\n\r\n".encode())


class Gossip(socketserver.StreamRequestHandler):
    """A mail server that refuses every log-in, and says aloud what it was sent."""

    def handle(self) -> None:
        self.wfile.write(b"220 mail.example.com\r\n")
        for line in self.rfile:
            words = line.split()
            if words[0].upper() == b"EHLO":
                self.wfile.write(b"250-mail.example.com\r\n250 AUTH PLAIN\r\n")
            elif words[0].upper() == b"AUTH":
                self.wfile.write(b"535 " + base64.b64decode(words[-1]).replace(b"\0", b" ") + b"\r\n")
            else:
                self.wfile.write(b"221 bye\r\n")


@contextmanager
def gossiping_mail_server() -> Iterator[int]:
    with socketserver.ThreadingTCPServer(("localhost", 0), Gossip) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module", params=["console", "json"])
def hostile_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HostileRun:
    run = HostileRun()
    folder = tmp_path_factory.mktemp("hostile")
    settings = {
        "USERSVC_LOG_LEVEL": "debug",
        "USERSVC_LOG_FORMAT": request.param,
        "USERSVC_PASSWORD_PEPPER": PEPPER,
        "USERSVC_ADMIN_TOKEN": TOKEN,
        "USERSVC_MAIL_FROM": "service@example.com",
    }
    with gossiping_mail_server() as port:
        mail = {"USERSVC_SMTP_URL": f"smtp://user:{MAIL_SECRET}@localhost:{port}"}
        with running(folder, settings | mail) as service:
            attack(run, service)
            service.wait_for_output("attempt 1 to welcome")
            database = folder / "usersvc.db"
            # While it runs the newest pages are in the write-ahead log.
            run.stored = b"".join(file.read_bytes() for file in folder.iterdir())
            # And now nothing can be stored or read.
            with closing(sqlite3.connect(database)) as stored:
                run.hashes += [found for (found,) in stored.execute("SELECT password_hash FROM users")]
            break_reads(database)
            with service.client() as client:
                run.ask(client, "POST", "/register", json=person(password=run.password()))
                run.ask(client, "GET", "/users", headers=BEARER)
            service.stop()
            run.said.append(service.output)
    # A failure that nobody foresaw.
    with running(folder, settings | {"USERSVC_DATABASE_URL": "memory://", "USERSVC_MAIL_FROM": ""}, FAILING) as service:
        with service.client() as client:
            run.ask(client, "GET", f"/users?email={quote(run.password())}%40example.com", headers=BEARER)
            run.ask(client, "GET", "/users", headers=BEARER)
        service.stop()
        run.said.append(service.output)
    assert len(run.passwords) > 25
    assert run.hashes
    return run


def forms(secret: str) -> set[str]:
    """How a secret may look when somebody has written it down."""
    encoded = secret.encode()
    return {
        secret,
        secret.lower(),
        secret.upper(),
        quote(secret, safe=""),
        json.dumps(secret)[1:-1],
        base64.b64encode(encoded).decode().rstrip("="),
        base64.urlsafe_b64encode(encoded).decode().rstrip("="),
        encoded.hex(),
    }


def assert_hidden(secrets: list[str], said: str) -> None:
    shown = [secret for secret in secrets if any(form in said for form in forms(secret))]
    assert not shown, f"{len(shown)} of {len(secrets)} are shown, as {shown[0]}"


def test_no_secret_is_said(hostile_run: HostileRun) -> None:
    everything = "\n".join(hostile_run.said)
    # The search would find them.
    assert_hidden_is_no_empty_promise(everything)
    assert_hidden([PEPPER, TOKEN, MAIL_SECRET], everything)
    assert_hidden(hostile_run.hashes, everything)
    # An address is shown as it was typed, to whoever may see it: two passwords were typed there.
    addresses = " ".join(hostile_run.addresses)
    assert_hidden([secret for secret in hostile_run.passwords if secret not in addresses], everything)


def assert_hidden_is_no_empty_promise(said: str) -> None:
    assert '"status"' in said
    with pytest.raises(AssertionError):
        assert_hidden(["application/problem+json"], said)


def test_no_password_is_stored(hostile_run: HostileRun) -> None:
    stored = hostile_run.stored.decode("latin-1")
    assert all(text in stored for text in hostile_run.addresses + hostile_run.hashes)
    addresses = " ".join(hostile_run.addresses)
    assert_hidden([secret for secret in hostile_run.passwords if secret not in addresses], stored)


def test_no_address_stands_in_the_log(hostile_run: HostileRun) -> None:
    log = "\n".join(said for said in hostile_run.said if "uvicorn" in said)
    assert "request" in log
    assert hostile_run.addresses
    assert not [address for address in hostile_run.addresses if address in log]


def test_objects_do_not_show_their_secrets() -> None:
    password, secret_hash = f"Pass-{token_hex(8)}!", f"$hash${token_hex(16)}"
    settings = Settings.from_environment(
        {
            "USERSVC_PASSWORD_PEPPER": PEPPER,
            "USERSVC_ADMIN_TOKEN": TOKEN,
            "USERSVC_SMTP_URL": f"smtps://user:{MAIL_SECRET}@mail.example.com",
            "USERSVC_MAIL_FROM": "service@example.com",
        }
    )
    registration = User.register(email="alice@example.com", password=password, age=30)
    user = registration.complete(PasswordHash(secret_hash), at=datetime.now(UTC))
    try:
        User.register(email="nobody", password=password * 30, age=3)
    except ValidationFailed as error:
        told = "".join(traceback.format_exception(error)) + repr(error) + repr(error.violations)
    shown: list[object] = [settings, settings.smtp, Password(password), registration, user, user.events]
    shown.append(BcryptPasswordHasher(cost=4, workers=1, pepper=PEPPER.encode()))
    everything = told + "".join(f"{each!r} {each}" for each in shown)
    assert "mail.example.com" in everything
    assert_hidden([PEPPER, TOKEN, MAIL_SECRET, password, secret_hash], everything)


def test_the_secrets_of_the_settings_are_not_in_what_a_bad_setting_says(tmp_path: Path) -> None:
    ended = run_to_end(
        tmp_path,
        {
            "USERSVC_PASSWORD_PEPPER": PEPPER,
            "USERSVC_ADMIN_TOKEN": f"{TOKEN} with a space",
            "USERSVC_SMTP_URL": f"smtp://user:{MAIL_SECRET}@host:port",
        },
    )
    assert ended.returncode == 2
    assert_hidden([PEPPER, TOKEN, MAIL_SECRET], ended.stdout + ended.stderr)
