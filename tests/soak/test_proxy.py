"""Two instances of the service behind a real nginx with the configuration of ``deploy/``."""

import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from email.message import Message
from functools import partial
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import httpx
import pytest

from tests.e2e.api import pages_from, person, register
from tests.e2e.server import DEADLINE, Service, free_port, running
from tests.redis_server import needs_redis, redis_server
from tests.soak.proxy import TRUST, Proxy, http_server, needs_nginx, proxy

pytestmark = needs_nginx


class Deployment(NamedTuple):
    proxy: Proxy
    instances: list[Service]


@contextmanager
def deployment(folder: Path, **settings: str) -> Iterator[Deployment]:
    """Two instances that share a database, and the proxy in front of them."""
    data = folder / "data"
    data.mkdir()
    settings = {"USERSVC_TRUSTED_PROXIES": "127.0.0.1", "USERSVC_LOG_FORMAT": "json", **settings}
    with ExitStack() as stack:
        instances = [stack.enter_context(running(data, settings)) for _ in range(2)]
        yield Deployment(stack.enter_context(proxy(folder, [each.address for each in instances])), instances)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    with deployment(tmp_path_factory.mktemp("deployment")) as deployed:
        yield deployed


def test_requests_are_distributed_to_both_instances(deployed: Deployment) -> None:
    with deployed.proxy.client() as client:
        users = [register(client) for _ in range(10)]
        listed = [user for page in pages_from(client, "/users?limit=3&order=asc") for user in page]
        assert [user for user in listed if user in users] == users
        assert client.get("/livez").headers["Strict-Transport-Security"] == "max-age=31536000"
    for instance in deployed.instances:
        instance.wait_for_output('"route":"/register","status":201')


@needs_redis
def test_limit_of_a_client_ignores_the_addresses_that_it_forwards(tmp_path: Path) -> None:
    redis_folder = tmp_path / "redis"
    redis_folder.mkdir()
    with (
        redis_server(redis_folder) as redis,
        deployment(tmp_path, USERSVC_REGISTER_RATE="4/hour", USERSVC_RATE_LIMIT_STORE=redis.url) as deployed,
    ):
        for address in ("127.0.0.2", "127.0.0.3"):
            with deployed.proxy.client(address) as client:
                made_up = [{"X-Forwarded-For": f"198.51.100.{number}"} for number in range(6)]
                responses = [client.post("/register", json=person(), headers=headers) for headers in made_up]
            assert [response.status_code for response in responses] == [201] * 4 + [429] * 2
            left = [response.headers["RateLimit"].split(";")[1] for response in responses[:4]]
            assert left == ["r=3", "r=2", "r=1", "r=0"]
        for instance in deployed.instances:
            instance.wait_for_output('"client":"127.0.0.2"')


def test_request_has_one_id_in_the_response_and_in_both_logs(deployed: Deployment) -> None:
    with deployed.proxy.client() as client:
        given = client.get("/users", headers={"X-Request-ID": "the-one"})
        made = client.get("/users")
        replaced = client.get("/users", headers={"X-Request-ID": "with spaces"})
    assert given.headers["X-Request-ID"] == "the-one"
    assert replaced.headers["X-Request-ID"] != "with spaces"
    for response in (given, made, replaced):
        request_id = response.headers["X-Request-ID"]
        [line] = [line for line in map(json.loads, deployed.proxy.log.splitlines()) if line["request_id"] == request_id]
        assert (line["status"], line["client"], line["method"]) == (200, "127.0.0.1", "GET")
        [instance] = [each for each in deployed.instances if line["instance"] == "{}:{}".format(*each.address)]
        instance.wait_for_output(f'"request_id":"{request_id}"')


def test_generated_idempotency_keys_are_secret_and_never_repeated(tmp_path: Path) -> None:
    received: list[Message] = []

    class Recording(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.headers)
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(201)
            self.send_header("Content-Length", "0")
            self.end_headers()

    own = {"Idempotency-Key": "the-key-of-the-client", "X-Request-ID": "the-id-of-the-client"}
    with (
        http_server(Recording) as address,
        proxy(tmp_path, [address, address]) as front,
        front.client() as client,
    ):
        for _ in range(20):
            client.post("/register", json=person())
        client.post("/register", json=person(), headers=own)
    # nginx writes a line after the response: all are there when it has ended.
    lines = front.log.splitlines()
    *generated, given = [(headers["Idempotency-Key"], headers["X-Request-ID"]) for headers in received]
    assert given == tuple(own.values())
    assert [json.loads(line)["request_id"] for line in lines] == [id_ for _, id_ in (*generated, given)]
    values = {value for pair in generated for value in pair}
    assert len(values) == 40
    assert all(re.fullmatch("[0-9a-f]{16}", value) for value in values)
    assert not [key for key, _ in (*generated, given) if key in front.log]


@pytest.mark.parametrize("size", [20_000, 100_000], ids=["by the service", "by the proxy"])
def test_a_large_body_is_refused_as_a_problem(deployed: Deployment, size: int) -> None:
    with deployed.proxy.client() as client:
        response = client.post("/register", json=person(password="x" * size), headers={"X-Request-ID": f"large-{size}"})
    assert (response.status_code, response.headers["Content-Type"]) == (413, "application/problem+json")
    document = response.json()
    assert set(document) == {"type", "title", "status", "detail", "instance", "code"}
    assert (document["code"], document["instance"]) == ("body-too-large", f"/requests/large-{size}")
    assert response.headers["X-Request-ID"] == f"large-{size}"


HOST = b"Host: localhost\r\nConnection: close\r\n"


@pytest.mark.parametrize(
    ("sent", "status", "code"),
    [
        (b"\x00\x01rubbish\r\n\r\n", 400, "malformed-http"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "malformed-http"),
        (b"GET / HTTP/3.0\r\n" + HOST + b"\r\n", 400, "malformed-http"),
        (b"GET /../.. HTTP/1.1\r\n" + HOST + b"\r\n", 400, "malformed-http"),
        (b"CONNECT localhost:443 HTTP/1.1\r\n" + HOST + b"\r\n", 400, "malformed-http"),
        (b"POST /register HTTP/1.1\r\n" + HOST + b"Content-Length: x\r\n\r\n", 400, "malformed-http"),
        (b"POST /register HTTP/1.1\r\n" + HOST + b"Transfer-Encoding: gzip\r\n\r\n", 400, "malformed-http"),
        (b"GET /metrics HTTP/1.1\r\n" + HOST + b"\r\n", 404, "not-found"),
        (b"GET /problem HTTP/1.1\r\n" + HOST + b"\r\n", 404, "not-found"),
        (b"TRACE /register HTTP/1.1\r\n" + HOST + b"\r\n", 405, "method-not-allowed"),
        (b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n", 414, "target-too-long"),
        (b"GET / HTTP/1.1\r\n" + HOST + b"A: " + b"a" * 10_000 + b"\r\n\r\n", 431, "head-too-large"),
    ],
)
def test_refusals_of_the_proxy_are_problems(deployed: Deployment, sent: bytes, status: int, code: str) -> None:
    address = ("127.0.0.1", int(deployed.proxy.url.rpartition(":")[2]))
    with (
        socket.create_connection(address, DEADLINE) as plain,
        TRUST.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        tls.sendall(sent)
        response = b"".join(iter(lambda: tls.recv(65536), b""))
    head, _, body = response.decode().partition("\r\n\r\n")
    assert head.split()[1] == str(status)
    fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:])
    document = json.loads(body)
    assert (document["status"], document["code"]) == (status, code)
    assert document["instance"] == f"/requests/{fields['x-request-id']}"
    assert fields["content-type"] == "application/problem+json"
    assert fields["strict-transport-security"] == "max-age=31536000"
    assert fields["x-content-type-options"] == "nosniff"
    assert fields["cache-control"] == "no-store"
    assert fields.get("allow") == ("post" if status == 405 else None)


def test_other_requests_that_the_proxy_refuses(deployed: Deployment) -> None:
    plain = httpx.get(deployed.proxy.url.replace("https://", "http://"), trust_env=False, timeout=DEADLINE)
    assert (plain.status_code, plain.json()["code"]) == (400, "malformed-http")
    with deployed.proxy.client() as client, pytest.raises(httpx.RemoteProtocolError):
        client.get("/livez", headers={"Host": "evil.example.com"})


def test_without_an_instance_the_response_is_a_problem(tmp_path: Path) -> None:
    unused = [("127.0.0.1", free_port()), ("127.0.0.1", free_port())]
    with proxy(tmp_path, unused) as front, front.client() as client:
        for response in (client.get("/users"), client.post("/register", json=person())):
            assert (response.status_code, response.json()["code"]) == (503, "overloaded")
            assert response.headers["Retry-After"] == "5"
            assert response.headers["X-Request-ID"] in response.json()["instance"]


def test_export_is_forwarded_without_buffering(tmp_path: Path) -> None:
    read = threading.Event()

    class Streaming(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"{}\n")
            # The rest is sent when the beginning has been read.
            self.wfile.write(b"{}\n" if read.wait(DEADLINE) else b"too late")

    with (
        http_server(Streaming) as address,
        proxy(tmp_path, [address, address]) as front,
        front.client() as client,
        client.stream("GET", "/users") as response,
    ):
        pieces = response.iter_raw()
        assert next(pieces) == b"{}\n"
        read.set()
        assert b"".join(pieces) == b"{}\n"


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_instance_that_ends_costs_no_response(tmp_path: Path, end: str) -> None:
    ended = threading.Event()
    statuses: Counter[int] = Counter()
    registered: list[str] = []

    def retried(send: Callable[[], httpx.Response]) -> httpx.Response:
        try:
            return send()
        except httpx.RemoteProtocolError:
            # Killed between the head of a response and its body: the client sees that it is incomplete.
            assert end == "killed"
            return send()

    def ask(front: Proxy) -> None:
        with front.client() as client:
            after = 0
            # On, until the other has been alone for a while.
            while after < 20:
                body, key = person(), {"Idempotency-Key": uuid4().hex}
                response = retried(partial(client.post, "/register", json=body, headers=key))
                statuses[response.status_code] += 1
                registered.append(response.headers.get("Location", ""))
                statuses[retried(partial(client.get, "/users?limit=1")).status_code] += 1
                after += ended.is_set()

    with deployment(tmp_path) as (front, (one, other)), ThreadPoolExecutor(8) as threads:
        asking = [threads.submit(ask, front) for _ in range(8)]
        one.wait_for_output('"route":"/register","status":201', 50)
        one.kill() if end == "killed" else one.stop()
        ended.set()
        for each in asking:
            each.result()
        assert set(statuses) == {200, 201}, statuses
        with other.client() as client:
            pages = pages_from(client, "/users?limit=200&order=asc")
        assert {f"/users/{user['id']}" for page in pages for user in page} == set(registered)
