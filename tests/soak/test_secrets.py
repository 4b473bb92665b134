"""No secret leaks: hostile clients and servers at debug level, and all output searched for every secret."""

import base64
import json
import socketserver
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from secrets import token_hex
from urllib.parse import quote

import httpx
import pytest

from tests.e2e.api import person
from tests.e2e.server import Service, break_reads, running
from tests.e2e.test_codes import FAILING

PEPPER, TOKEN, MAIL_SECRET = (f"{kind}-{token_hex(8)}" for kind in ("pepper", "token", "mail"))
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@dataclass
class HostileRun:
    """Everything that a service logged, sent and stored."""

    output: list[str] = field(default_factory=list)
    passwords: list[str] = field(default_factory=list)
    hashes: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    stored: str = ""

    def password(self) -> str:
        self.passwords.append(f"Pass-{token_hex(8)}!")
        return self.passwords[-1]

    def send(self, client: httpx.Client, method: str, target: str, **request: object) -> None:
        response = client.request(method, target, **request)  # type: ignore[arg-type]  # any argument of httpx
        self.output += [str(response.headers), response.text]


SHAPES: tuple[Callable[[str], object], ...] = (
    str,
    lambda secret: [secret],
    lambda secret: {secret: 1},
    lambda secret: secret * 40,
    lambda secret: secret * 1000,
)


def attack(run: HostileRun, service: Service) -> None:
    """Send secrets where they belong and where they do not."""
    with service.client() as client:
        send, register = partial(run.send, client), partial(run.send, client, "POST", "/register")
        for name, shape in product(("email", "password", "age", "extra"), SHAPES):
            register(json=person(password=run.password()) | {name: shape(run.password())})
        same = run.password()
        invalid = person(password=run.password(), age=3)
        for body in (invalid, {**invalid, "email": f"{same}@example.com", "password": same}, [same], same):
            register(json=body)
        secret = run.password()
        for text in (
            f'{{"password": "{secret}"',
            f'{{"password": "{secret}", "password": "{secret}"}}',
            f'{{"password": "{secret}", "age": NaN}}',
            f'{{"password": "{secret}"}}\ud800',
            f"password={secret}",
        ):
            for headers in ({"Content-Type": "application/json"}, {}):
                register(content=text.encode("utf-8", "surrogatepass"), headers=headers)
        for target in ("/users?email={}", "/users?limit={}", "/users?cursor={}", "/users/{}", "/problems/{}", "/{}"):
            send("GET", target.format(quote(run.password())), headers=BEARER)
        send("GET", "/users", headers={"Authorization": f"Bearer {run.password()}"})
        send("GET", "/users", auth=("admin", run.password()))
        send("GET", "/livez", headers={"Accept": run.password(), "Cookie": f"a={run.password()}"})
        register(json=invalid, headers={"Accept": "text/html"})
        register(json=invalid, params={"password": invalid["password"]})
        send("PUT", "/register", json=invalid)
        keyed = {"Idempotency-Key": run.password()}
        for _ in range(2):
            register(json=person(password=run.password()), headers=keyed)
        for path in ("/users", "/openapi.json", "/docs", "/problems/unauthorized", "/readyz", "/metrics", "/"):
            send("GET", path, headers=BEARER)
        run.addresses += [user["email"] for user in client.get("/users", headers=BEARER).json()["data"]]
    service.talk(f"GET /{run.password()} HTTP/1.1\r\n{run.password()}\r\n\r\n".encode())
    service.talk(f"{run.password()}\r\n\r\n".encode())


class LeakingMailServer(socketserver.StreamRequestHandler):
    """Rejects every log-in with a response that contains the credentials."""

    def handle(self) -> None:
        self.wfile.write(b"220 mail.example.com\r\n")
        self.rfile.readline()
        self.wfile.write(b"250-mail.example.com\r\n250 AUTH PLAIN\r\n")
        credentials = base64.b64decode(self.rfile.readline().split()[-1])
        self.wfile.write(b"535 " + credentials.replace(b"\0", b" ") + b"\r\n")
        self.rfile.readline()


@contextmanager
def leaking_mail_server() -> Iterator[dict[str, str]]:
    with socketserver.ThreadingTCPServer(("localhost", 0), LeakingMailServer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"smtp://user:{MAIL_SECRET}@localhost:{server.server_address[1]}"
        yield {"USERSVC_SMTP_URL": url, "USERSVC_MAIL_FROM": "service@example.com"}
        server.shutdown()


@pytest.fixture(scope="module", params=["console", "json"])
def hostile_run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> HostileRun:
    run = HostileRun()
    folder = tmp_path_factory.mktemp("hostile")
    settings = {
        "USERSVC_LOG_LEVEL": "debug",
        "USERSVC_LOG_FORMAT": request.param,
        "USERSVC_PASSWORD_PEPPER": PEPPER,
        "USERSVC_ADMIN_TOKEN": TOKEN,
    }
    with leaking_mail_server() as mail, running(folder, settings | mail) as service, service.client() as client:
        attack(run, service)
        service.wait_for_output("attempt 1 to welcome")
        # Including the write-ahead log, which has the latest pages.
        run.stored = b"".join(file.read_bytes() for file in folder.iterdir()).decode("latin-1")
        with closing(sqlite3.connect(folder / "usersvc.db")) as stored:
            run.hashes += [found for (found,) in stored.execute("SELECT password_hash FROM users")]
        break_reads(folder / "usersvc.db")
        run.send(client, "POST", "/register", json=person(password=run.password()))
        run.send(client, "GET", "/users", headers=BEARER)
        service.stop()
        run.output.append(service.output)
    # Unexpected errors.
    in_memory = settings | {"USERSVC_DATABASE_URL": "memory://"}
    with running(folder, in_memory, FAILING) as service, service.client() as client:
        run.send(client, "GET", f"/users?email={quote(run.password())}%40example.com", headers=BEARER)
        run.send(client, "GET", "/users", headers=BEARER)
        service.stop()
        run.output.append(service.output)
    assert len(run.passwords) > 25
    assert run.hashes
    return run


def forms(secret: str) -> set[str]:
    """The encodings in which a secret may appear."""
    encoded = secret.encode()
    return {
        secret,
        quote(secret, safe=""),
        json.dumps(secret)[1:-1],
        base64.b64encode(encoded).decode().rstrip("="),
        base64.urlsafe_b64encode(encoded).decode().rstrip("="),
        encoded.hex(),
    }


def shown(secrets: list[str], text: str) -> list[str]:
    return [secret for secret in secrets if any(form in text for form in forms(secret))]


def test_no_secret_is_logged_or_sent(hostile_run: HostileRun) -> None:
    output = "\n".join(hostile_run.output)
    # The search finds what is there.
    assert shown(["application/problem+json"], output)
    assert not shown([PEPPER, TOKEN, MAIL_SECRET, *hostile_run.hashes, *hostile_run.passwords], output)


def test_no_password_is_stored(hostile_run: HostileRun) -> None:
    assert all(text in hostile_run.stored for text in hostile_run.addresses + hostile_run.hashes)
    assert not shown(hostile_run.passwords, hostile_run.stored)


def test_no_address_is_logged(hostile_run: HostileRun) -> None:
    log = "\n".join(text for text in hostile_run.output if "uvicorn" in text)
    assert "request" in log
    assert hostile_run.addresses
    assert not [address for address in hostile_run.addresses if address in log]
