"""Each code of the contract, caused through a real socket; the OpenAPI document has it where it can occur."""

import json
import select
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import httpx
import pytest

from tests.e2e.api import RawResponse, person
from tests.e2e.launch import SHORT_TIMES
from tests.e2e.server import DEADLINE, SERVE, Service, break_reads, running
from usersvc.web.problems import PROBLEMS

TOKEN = "a-token-of-the-tests-4711"
JSON = {"Content-Type": "application/json"}
ROOT = Path(__file__).parents[2]

FAILING = (
    sys.executable, "-m", "uvicorn", "--factory", "tests.e2e.failing_storage:create_asgi_app",
    "--app-dir", str(ROOT), "--port", "0",
)  # fmt: skip


class Case(NamedTuple):
    """How a code is caused, and the operation that documents it."""

    cause: Callable[["Place"], RawResponse]
    operation: tuple[str, str] | None
    headers: tuple[str, ...] = ()


class Place(NamedTuple):
    """Two running services, and a way to start others for one test."""

    shared: Service
    guarded: Service
    folder: Path
    stack: ExitStack

    def service(self, *, command: tuple[str, ...] = SERVE, **settings: str) -> Service:
        return self.stack.enter_context(running(self.folder, settings, command))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running(tmp_path_factory.mktemp("guarded"), {"USERSVC_ADMIN_TOKEN": TOKEN}) as service:
        yield service


@pytest.fixture
def place(service: Service, guarded: Service, tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        yield Place(service, guarded, tmp_path, stack)


def ask(
    service: Service,
    method: str,
    target: str,
    *,
    headers: dict[str, str] | None = None,
    body: bytes = b"",
    announce: int | None = None,
) -> RawResponse:
    """Send one request over a socket of its own."""
    fields = {"Host": "test", "Connection": "close", **(headers or {})}
    if body or announce is not None:
        fields["Content-Length"] = str(len(body) if announce is None else announce)
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return RawResponse.read(service.talk(f"{method} {target} HTTP/1.1\r\n{head}\r\n".encode() + body))


def register(service: Service, body: dict[str, Any], **headers: str) -> RawResponse:
    return ask(service, "POST", "/register", headers=JSON | headers, body=json.dumps(body).encode())


def taken(place: Place) -> RawResponse:
    first = person()
    register(place.shared, first)
    return register(place.shared, person(email=first["email"].upper()))


def reused(place: Place) -> RawResponse:
    key = {"Idempotency-Key": str(uuid4())}
    register(place.shared, person(), **key)
    return register(place.shared, person(), **key)


def limited(place: Place) -> RawResponse:
    service = place.service(USERSVC_REGISTER_RATE="1/hour")
    register(service, person())
    return register(service, person())


def without_storage(place: Place) -> RawResponse:
    service = place.service()
    break_reads(place.folder / "usersvc.db")
    return ask(service, "GET", "/users")


def overloaded(place: Place) -> RawResponse:
    # At this cost a hash takes longer than the test.
    service = place.service(USERSVC_BCRYPT_COST="16", USERSVC_HASH_WORKERS="1", USERSVC_HASH_QUEUE="0")
    with ExitStack() as stack:
        clients = [stack.enter_context(closing(socket.create_connection(service.address, DEADLINE))) for _ in range(2)]
        for client in clients:
            body = json.dumps(person()).encode()
            head = "POST /register HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nConnection: close"
            client.sendall(f"{head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        [[refused, *_], _, _] = select.select(clients, [], [], DEADLINE)
        response = RawResponse.read(b"".join(iter(partial(refused.recv, 65536), b"")))
    service.kill()
    return response


def asking(method: str, target: str, **request: Any) -> Callable[[Place], RawResponse]:
    """A request to the service with default settings."""
    return lambda place: ask(place.shared, method, target, **request)


REGISTER, USERS, USER = ("/register", "post"), ("/users", "get"), ("/users/{user_id}", "get")

CASES = {
    "malformed-http": Case(lambda place: RawResponse.read(place.shared.talk(b"hello\r\n\r\n")), None),
    "malformed-json": Case(asking("POST", "/register", headers=JSON, body=b"{"), REGISTER),
    "unauthorized": Case(lambda place: ask(place.guarded, "GET", "/users"), USERS, ("www-authenticate",)),
    "not-found": Case(asking("GET", "/nowhere"), ("/problems/{code}", "get")),
    "user-not-found": Case(asking("GET", "/users/01936f3c-5e1a-7b3c-9d2e-4f5a6b7c8d9e"), USER),
    "method-not-allowed": Case(asking("DELETE", "/users"), None, ("allow",)),
    "not-acceptable": Case(asking("GET", "/users", headers={"Accept": "image/png"}), USERS),
    "request-timeout": Case(
        lambda place: ask(place.service(command=SHORT_TIMES), "POST", "/register", headers=JSON, body=b"{", announce=9),
        REGISTER,
    ),
    "email-taken": Case(taken, REGISTER),
    "body-too-large": Case(asking("POST", "/register", headers=JSON, body=b"x" * 20_000), REGISTER),
    "target-too-long": Case(asking("GET", "/" + "x" * 9000), None),
    "unsupported-media-type": Case(
        asking("POST", "/register", headers={"Content-Type": "text/plain"}, body=b"{}"), REGISTER, ("accept",)
    ),
    "validation-failed": Case(asking("POST", "/register", headers=JSON, body=b"{}"), REGISTER),
    "idempotency-key-reused": Case(reused, REGISTER),
    "rate-limited": Case(limited, REGISTER, ("retry-after", "ratelimit", "ratelimit-policy")),
    "head-too-large": Case(asking("GET", "/livez", headers={"X-Long": "x" * 40_000}), None),
    "internal-error": Case(
        lambda place: ask(place.service(command=FAILING, USERSVC_DATABASE_URL="memory://"), "GET", "/users"), USERS
    ),
    "overloaded": Case(overloaded, REGISTER, ("retry-after",)),
    "transfer-coding-not-implemented": Case(
        asking("GET", "/livez", headers={"Transfer-Encoding": "gzip, chunked"}, body=b""), None
    ),
    "http-version-not-supported": Case(
        lambda place: RawResponse.read(place.shared.talk(b"GET /livez HTTP/2.0\r\nHost: test\r\n\r\n")), None
    ),
    "storage-unavailable": Case(without_storage, USERS, ("retry-after",)),
}


def test_every_code_has_a_case() -> None:
    assert CASES.keys() == PROBLEMS.keys()


@pytest.fixture(scope="module")
def document(guarded: Service) -> dict[str, Any]:
    with guarded.client() as client:
        document: dict[str, Any] = client.get("/openapi.json").json()
        return document


@pytest.mark.parametrize("code", CASES)
def test_code_has_its_status_headers_and_documentation(
    code: str, place: Place, client: httpx.Client, document: dict[str, Any]
) -> None:
    case = CASES[code]
    response = case.cause(place)

    problem = json.loads(response.rest)
    assert (problem["code"], problem["type"]) == (code, f"/problems/{code}")
    assert response.status == problem["status"] == PROBLEMS[code].status
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["x-request-id"] in problem["instance"]
    assert int(response.headers["content-length"]) == len(response.rest)
    assert {name for name in case.headers if name not in response.headers} == set()
    if "retry-after" in case.headers:
        assert int(response.headers["retry-after"]) >= 1

    explained = client.get(problem["type"]).json()["data"]
    assert (explained["code"], explained["status"], explained["title"]) == (code, response.status, problem["title"])

    if case.operation is not None:
        path, method = case.operation
        documented = document["paths"][path][method]["responses"][str(response.status)]
        assert code in documented["content"]["application/problem+json"]["examples"]
        assert {name.lower() for name in documented["headers"]} >= {name for name in case.headers if name != "accept"}
