"""A real HAProxy in front of the service: it removes and sets header fields, and forwards trailer fields unchanged."""

import shutil
import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from tests.e2e.api import RawResponse
from tests.e2e.server import DEADLINE, Service, free_port, running
from tests.soak.proxy import listening

pytestmark = pytest.mark.skipif(shutil.which("haproxy") is None, reason="haproxy is not installed")

TOKEN = "a-token-of-the-tests-4711"
CONFIGURATION = """
global
    tune.bufsize 65536
    tune.http.maxhdr 5000
defaults
    mode http
    timeout connect 10s
    timeout client 30s
    timeout server 30s
frontend public
    bind 127.0.0.1:{port}
    http-request del-header Authorization
    http-request set-header X-Forwarded-For %[src]
    http-request set-header X-Request-ID from-the-proxy
    default_backend service
backend service
    server one 127.0.0.1:{upstream}
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = {
        "USERSVC_ADMIN_TOKEN": TOKEN,
        "USERSVC_TRUSTED_PROXIES": "127.0.0.1",
        "USERSVC_REGISTER_RATE": "2/hour",
        "USERSVC_LOG_FORMAT": "json",
    }
    with running(tmp_path_factory.mktemp("service"), settings) as service:
        yield service


@pytest.fixture(scope="module")
def port(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    port = free_port()
    file = tmp_path_factory.mktemp("haproxy") / "haproxy.cfg"
    file.write_text(CONFIGURATION.format(port=port, upstream=service.address[1]), "utf-8")
    with listening(["haproxy", "-db", "-f", str(file)], port):
        yield port


def ask(port: int, line: str, *trailer: str, client: str = "127.0.0.1") -> RawResponse:
    """Send a chunked request with trailer fields through the proxy, from an address of this host."""
    head = f"{line} HTTP/1.1\r\nHost: test\r\nConnection: close\r\nContent-Type: application/json\r\n"
    fields = "".join(f"{field}\r\n" for field in trailer)
    with closing(socket.create_connection(("127.0.0.1", port), DEADLINE, (client, 0))) as connection:
        connection.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n1\r\n{{\r\n0\r\n{fields}\r\n".encode())
        return RawResponse.read(b"".join(iter(lambda: connection.recv(65536), b"")))


def test_trailer_field_does_not_replace_a_header_field_that_the_proxy_removes(service: Service, port: int) -> None:
    response = ask(port, "GET /users", f"Authorization: Bearer {TOKEN}", "X-Request-ID: from-the-client")
    assert (response.status, response.headers["x-request-id"]) == (401, "from-the-proxy")
    assert "from-the-client" not in service.output


def test_rate_limit_counts_the_address_set_by_the_proxy(service: Service, port: int) -> None:
    responses = [ask(port, "POST /register", f"X-Forwarded-For: 198.51.100.{number}") for number in range(4)]
    assert [response.status for response in responses] == [400, 400, 429, 429]
    assert "198.51.100." not in service.output


def test_too_many_trailer_fields_are_refused_behind_a_proxy_too(port: int) -> None:
    fields = ["X-Field: y"] * 2500
    assert ask(port, "POST /register", *fields, client="127.0.0.2").status == 431
