"""What docs/deploy.md shows, run: the site for nginx, the unit for systemd, the other runners."""

import re
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.api import person
from tests.e2e.server import DEADLINE, Service, StartService, free_port

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PEM = ROOT / "tests/integration/localhost.pem"
NGINX = shutil.which("nginx")
SYSTEMD = shutil.which("systemd-analyze")


@contextmanager
def nginx(folder: Path, service: Service) -> Iterator[int]:
    """nginx with our site in front of a service, on a free port."""
    port = free_port()
    site = (DEPLOY / "nginx/usersvc.conf").read_text("utf-8")
    for shown, real in {
        "127.0.0.1:8000": service.url.removeprefix("http://"),
        "listen 443": f"listen 127.0.0.1:{port}",
        "/etc/ssl/users.example.com.pem": str(PEM),
        "/etc/ssl/users.example.com.key": str(PEM),
    }.items():
        assert shown in site
        site = site.replace(shown, real)
    places = "\n".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/nginx.pid; error_log {folder}/error.log;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{places}\n{site}\n}}\n"
    )
    assert NGINX is not None
    process = subprocess.Popen([NGINX, "-c", folder / "nginx.conf"], stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + DEADLINE
        while True:
            assert process.poll() is None, (folder / "error.log").read_text()
            assert time.monotonic() < deadline
            try:
                httpx.get(f"http://127.0.0.1:{port}/", trust_env=False)
                break
            except httpx.TransportError:
                time.sleep(0.02)
        yield port
    finally:
        process.terminate()
        process.wait(DEADLINE)


def ask(port: int, host: str, method: str, path: str, **more: Any) -> httpx.Response:
    """Ask 127.0.0.1 over TLS as if it were a host of this name, whoever its certificate is for."""
    headers = {"Host": host} | more.pop("headers", {})
    # From another address than the proxy's, as in life.
    transport = httpx.HTTPTransport(verify=False, local_address="127.0.0.2")
    with httpx.Client(transport=transport, trust_env=False, timeout=DEADLINE) as client:
        return client.request(
            method, f"https://127.0.0.1:{port}{path}", headers=headers, extensions={"sni_hostname": host}, **more
        )


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_the_site_for_nginx_works_and_tells_clients_apart(start: StartService, tmp_path: Path) -> None:
    service = start(USERSVC_TRUSTED_PROXIES="127.0.0.1", USERSVC_REGISTER_RATE="2/minute")
    with nginx(tmp_path, service) as port:
        ours = partial(ask, port, "users.example.com")
        # What a client makes up does not help it: the proxy adds the address that it was asked from.
        statuses = [
            ours(
                "POST",
                "/register",
                json=person(email=f"user{number}@example.com"),
                headers={"X-Forwarded-For": f"192.0.2.{number}"},
            ).status_code
            for number in range(3)
        ]
        assert statuses == [201, 201, 429]
        listed = ours("GET", "/users")
        assert [user["email"] for user in listed.json()["data"]] == ["user0@example.com", "user1@example.com"]
        assert listed.headers["Strict-Transport-Security"] == "max-age=31536000"
        assert ours("GET", "/metrics").status_code == 404
        service.wait_for_output(f"request_id={listed.headers['X-Request-ID']}")
        # The service keeps what a client calls its request, and what is no name of one it does not.
        for said, kept in (("the-one", True), ("with spaces", False)):
            answer = ours("GET", "/livez", headers={"X-Request-ID": said})
            assert (answer.headers["X-Request-ID"] == said) is kept


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_the_site_for_nginx_answers_no_other_host(start: StartService, tmp_path: Path) -> None:
    with nginx(tmp_path, start()) as port:
        assert ask(port, "users.example.com", "GET", "/livez").status_code == 200
        with pytest.raises(httpx.ConnectError):
            ask(port, "elsewhere.example", "GET", "/livez")


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_the_site_for_nginx_does_not_respond_to_another_host_in_a_connection_to_the_right_one(
    start: StartService, tmp_path: Path
) -> None:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    expected = {
        b"GET /livez HTTP/1.1\r\nHost: users.example.com\r\n": b"HTTP/1.1 200 ",
        b"GET /livez HTTP/1.1\r\nHost: USERS.example.com.:443\r\n": b"HTTP/1.1 200 ",
        b"GET /livez HTTP/1.1\r\nHost: evil.example\r\n": b"",
        b"GET / HTTP/1.1\r\nHost: evil.example\r\n": b"",
        b"GET /metrics HTTP/1.1\r\nHost: evil.example\r\n": b"",
        b"GET /livez HTTP/1.1\r\nHost: 127.0.0.1\r\n": b"",
        b"GET http://evil.example/livez HTTP/1.1\r\nHost: users.example.com\r\n": b"",
    }
    with nginx(tmp_path, start()) as port:
        for head, beginning in expected.items():
            with (
                socket.create_connection(("127.0.0.1", port), DEADLINE) as plain,
                context.wrap_socket(plain, server_hostname="users.example.com") as tls,
            ):
                tls.sendall(head + b"Connection: close\r\n\r\n")
                answer = b"".join(iter(partial(tls.recv, 65536), b""))
            assert answer[:13] == beginning, head


@pytest.mark.skipif(SYSTEMD is None, reason="systemd-analyze is not installed")
def test_the_unit_for_systemd_is_one(tmp_path: Path) -> None:
    unit = tmp_path / "usersvc.service"
    text = (DEPLOY / "systemd/usersvc.service").read_text("utf-8")
    # The program has to exist where the unit is looked through.
    assert "/opt/usersvc/bin/usersvc" in text
    unit.write_text(text.replace("/opt/usersvc/bin/usersvc", sys.executable))
    assert SYSTEMD is not None
    looked = subprocess.run(
        [SYSTEMD, "verify", "--man=no", unit], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert "usersvc.service" not in looked.stderr, looked.stderr
    assert looked.returncode == 0, looked.stderr


RUNNERS = {
    "uvicorn": ["--port", "{port}"],
    "hypercorn": ["--bind", "127.0.0.1:{port}"],
    "granian": ["--port", "{port}"],
}


@pytest.mark.parametrize("runner", RUNNERS)
def test_another_runner_serves_the_whole_service(tmp_path: Path, runner: str) -> None:
    [shown] = re.findall(rf"^{runner} .*$", (ROOT / "docs/deploy.md").read_text("utf-8"), re.MULTILINE)
    port = free_port()
    words = [word.strip('"') for word in shown.split()] + [word.format(port=port) for word in RUNNERS[runner]]
    program = Path(sys.executable).parent / words[0]
    service = Service(tmp_path, {"USERSVC_PORT": str(port)}, [str(program), *words[1:]])
    try:
        service.wait_until_it_responds()
        with service.client() as client:
            assert client.post("/register", json=person(email="alice@example.com")).status_code == 201
            assert client.get("/readyz").status_code == 200
            assert client.get("/users").json()["data"][0]["email"] == "alice@example.com"
        service.wait_for_output("sent a welcome mail to alice@example.com")
    finally:
        service.stop()
