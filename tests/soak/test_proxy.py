"""Two instances of the service behind a real nginx, which has the configuration of ``deploy/``."""

import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from email.message import Message
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import httpx
import pytest

from tests.e2e.api import pages_from, person, register
from tests.e2e.server import DEADLINE, Service, free_port, running
from tests.redis_server import needs_redis, redis_server
from tests.soak.proxy import TRUST, Proxy, needs_nginx, proxy

pytestmark = needs_nginx


class Deployment(NamedTuple):
    proxy: Proxy
    instances: list[Service]


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployment]:
    """Two instances that share a database, and the proxy in front of them."""
    data, folder = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("proxy")
    settings = {"USERSVC_TRUSTED_PROXIES": "127.0.0.1", "USERSVC_LOG_FORMAT": "json"}
    with ExitStack() as stack:
        instances = [stack.enter_context(running(data, settings)) for _ in range(2)]
        yield Deployment(stack.enter_context(proxy(folder, [each.address for each in instances])), instances)


def test_requests_go_to_both_instances_under_one_name(deployed: Deployment) -> None:
    with deployed.proxy.client() as client:
        users = [register(client) for _ in range(10)]
        listed = [user["id"] for page in pages_from(client, "/users?limit=3&order=asc") for user in page]
        assert [user["id"] for user in users] == [each for each in listed if each in {user["id"] for user in users}]
        assert client.get("/livez").headers["Strict-Transport-Security"] == "max-age=31536000"
    for instance in deployed.instances:
        instance.wait_for_output('"route":"/register","status":201')


@needs_redis
def test_each_client_has_one_limit_whatever_it_says_of_itself(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("one", "other", "proxy", "redis")]
    for folder in folders:
        folder.mkdir()
    with ExitStack() as stack:
        redis = stack.enter_context(redis_server(folders[3]))
        settings = {
            "USERSVC_TRUSTED_PROXIES": "127.0.0.1",
            "USERSVC_REGISTER_RATE": "4/hour",
            "USERSVC_RATE_LIMIT_STORE": redis.url,
            "USERSVC_LOG_FORMAT": "json",
        }
        instances = [stack.enter_context(running(folder, settings)) for folder in folders[:2]]
        front = stack.enter_context(proxy(folders[2], [each.address for each in instances]))
        for address in ("127.0.0.2", "127.0.0.3"):
            with front.client(address) as client:
                made_up = [{"X-Forwarded-For": f"198.51.100.{number}"} for number in range(6)]
                answers = [client.post("/register", json=person(), headers=headers) for headers in made_up]
                assert [answer.status_code for answer in answers] == [201] * 4 + [429] * 2
                assert [answer.headers["RateLimit"][:14] for answer in answers[:4]] == [
                    f'"register";r={left}' for left in (3, 2, 1, 0)
                ]
        for instance in instances:
            instance.wait_for_output('"client":"127.0.0.2"')


def test_a_request_has_one_id_in_the_answer_and_in_both_logs(deployed: Deployment) -> None:
    with deployed.proxy.client() as client:
        told = client.get("/users", headers={"X-Request-ID": "the-one"})
        made = client.get("/users")
        replaced = client.get("/users", headers={"X-Request-ID": "with spaces"})
    assert told.headers["X-Request-ID"] == "the-one"
    assert replaced.headers["X-Request-ID"] != "with spaces"
    for answer in (told, made, replaced):
        request_id = answer.headers["X-Request-ID"]
        [line] = [line for line in map(json.loads, deployed.proxy.log.splitlines()) if line["request_id"] == request_id]
        assert (line["status"], line["client"], line["method"]) == (200, "127.0.0.1", "GET")
        [instance] = [each for each in deployed.instances if line["instance"] == "{}:{}".format(*each.address)]
        instance.wait_for_output(f'"request_id":"{request_id}"')


@contextmanager
def recording_instance() -> Iterator[tuple[tuple[str, int], list[Message]]]:
    """A server that keeps the header fields of each request."""
    received: list[Message] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            received.append(self.headers)
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(201)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Stay silent."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield ("127.0.0.1", server.server_port), received
        finally:
            server.shutdown()
            thread.join()


def test_an_idempotency_key_cannot_be_read_from_the_log_or_the_request_id(tmp_path: Path) -> None:
    with (
        recording_instance() as (address, received),
        proxy(tmp_path, [address, address]) as front,
        front.client() as client,
    ):
        for _ in range(20):
            client.post("/register", json=person())
        own = {"Idempotency-Key": "the-key-of-the-client", "X-Request-ID": "the-id-of-the-client"}
        client.post("/register", json=person(), headers=own)
    # nginx writes a line after the response: all are there when it has ended.
    lines = front.log.splitlines()
    *generated, given = [(headers["Idempotency-Key"], headers["X-Request-ID"]) for headers in received]
    assert given == ("the-key-of-the-client", "the-id-of-the-client")
    assert [json.loads(line)["request_id"] for line in lines] == [*(id_ for _, id_ in generated), given[1]]
    # No value comes twice, neither among the keys nor among the ids, nor as a part of the other.
    values = [value for pair in generated for value in pair]
    assert all(re.fullmatch("[0-9a-f]{16}", value) for value in values)
    assert len({*values}) == 40
    for key, _ in [*generated, given]:
        assert key not in "".join(lines)


@pytest.mark.parametrize("size", [20_000, 100_000], ids=["by the service", "by the proxy"])
def test_a_large_body_is_refused_as_a_problem(deployed: Deployment, size: int) -> None:
    with deployed.proxy.client() as client:
        answer = client.post("/register", json=person(password="x" * size), headers={"X-Request-ID": f"large-{size}"})
    assert (answer.status_code, answer.headers["Content-Type"]) == (413, "application/problem+json")
    document = answer.json()
    assert set(document) == {"type", "title", "status", "detail", "instance", "code"}
    assert (document["code"], document["instance"]) == ("body-too-large", f"/requests/large-{size}")
    assert answer.headers["X-Request-ID"] == f"large-{size}"


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
def test_what_the_proxy_refuses_by_itself_is_a_problem(
    deployed: Deployment, sent: bytes, status: int, code: str
) -> None:
    address = ("127.0.0.1", int(deployed.proxy.url.rpartition(":")[2]))
    with (
        socket.create_connection(address, DEADLINE) as plain,
        TRUST.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        tls.sendall(sent)
        answer = b"".join(iter(lambda: tls.recv(65536), b""))
    head, _, body = answer.decode().partition("\r\n\r\n")
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


def test_who_speaks_no_tls_is_told_so_in_a_problem(deployed: Deployment) -> None:
    answer = httpx.get(deployed.proxy.url.replace("https://", "http://"), trust_env=False, timeout=DEADLINE)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed-http")


def test_figures_are_not_for_the_world(deployed: Deployment) -> None:
    with deployed.proxy.client() as client:
        answer = client.get("/metrics")
    assert (answer.status_code, answer.json()["code"]) == (404, "not-found")


def test_what_asks_for_another_name_gets_no_answer(deployed: Deployment) -> None:
    with deployed.proxy.client() as client, pytest.raises(httpx.RemoteProtocolError):
        client.get("/livez", headers={"Host": "evil.example.com"})


def test_without_an_instance_a_problem_says_so(tmp_path: Path) -> None:
    nobody = [("127.0.0.1", free_port()), ("127.0.0.1", free_port())]
    with proxy(tmp_path, nobody) as front, front.client() as client:
        for answer in (client.get("/users"), client.post("/register", json=person())):
            assert (answer.status_code, answer.json()["code"]) == (503, "overloaded")
            assert answer.headers["Retry-After"] == "5"
            assert answer.headers["X-Request-ID"] in answer.json()["instance"]


def test_an_export_is_passed_on_as_it_comes(tmp_path: Path) -> None:
    read = threading.Event()
    was_read = []

    def serve(listener: socket.socket) -> None:
        with listener, listener.accept()[0] as connection:
            connection.recv(65536)
            connection.sendall(
                b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n\r\n{}\n"
            )
            # The rest comes when the beginning has arrived, or never did.
            was_read.append(read.wait(DEADLINE))
            connection.sendall(b"{}\n")

    listener = socket.create_server(("127.0.0.1", 0))
    serving = threading.Thread(target=serve, args=[listener])
    serving.start()
    instances = [listener.getsockname()[:2], ("127.0.0.1", free_port())]
    with proxy(tmp_path, instances) as front, front.client() as client, client.stream("GET", "/users") as answer:
        pieces = answer.iter_raw()
        assert next(pieces) == b"{}\n"
        read.set()
        assert b"".join(pieces) == b"{}\n"
    serving.join()
    assert was_read == [True]


@pytest.mark.parametrize("end", ["stopped", "killed"])
def test_an_instance_that_ends_costs_nobody_an_answer(tmp_path: Path, end: str) -> None:
    data, folder = tmp_path / "data", tmp_path / "proxy"
    data.mkdir()
    folder.mkdir()
    settings = {"USERSVC_TRUSTED_PROXIES": "127.0.0.1", "USERSVC_LOG_FORMAT": "json"}
    with ExitStack() as stack:
        one, other = (stack.enter_context(running(data, settings)) for _ in range(2))
        front = stack.enter_context(proxy(folder, [one.address, other.address]))
        ended = threading.Event()
        statuses: Counter[int] = Counter()
        registered: list[str] = []

        def answered(send: Callable[[], httpx.Response]) -> httpx.Response:
            try:
                return send()
            except httpx.RemoteProtocolError:
                # Killed between the head of an answer and its body: what nginx has passed on cannot be taken back, but
                # is seen to be cut off.
                assert end == "killed"
                return send()

        def ask() -> None:
            with front.client() as client:
                after = 0
                # On, until the other has been alone for a while.
                while after < 20:
                    body, key = person(), {"Idempotency-Key": uuid4().hex}
                    answer = answered(partial(client.post, "/register", json=body, headers=key))
                    statuses[answer.status_code] += 1
                    registered.append(answer.headers.get("Location", ""))
                    statuses[answered(partial(client.get, "/users?limit=1")).status_code] += 1
                    after += ended.is_set()

        asking = [threading.Thread(target=ask) for _ in range(8)]
        for each in asking:
            each.start()
        one.wait_for_output('"route":"/register","status":201', 50)
        one.kill() if end == "killed" else one.stop()
        ended.set()
        for each in asking:
            each.join()
        assert set(statuses) == {200, 201}, statuses
        with other.client() as client:
            users = {
                f"/users/{user['id']}" for page in pages_from(client, "/users?limit=200&order=asc") for user in page
            }
        assert users == set(registered)
