"""The examples of docs/deploy.md: the site for nginx, the unit for systemd, other ASGI servers."""

import re
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.api import person, register
from tests.e2e.server import DEADLINE, Service, StartService, free_port, running
from tests.soak.proxy import CERTIFICATE, ROOT, listening, needs_nginx

DEPLOY = ROOT / "deploy"


@contextmanager
def nginx(folder: Path, service: Service) -> Iterator[int]:
    """nginx with the documented site in front of a service, on a free port."""
    port = free_port()
    site = (DEPLOY / "nginx/usersvc.conf").read_text("utf-8")
    for shown, real in {
        "127.0.0.1:8000": service.url.removeprefix("http://"),
        "listen 443": f"listen 127.0.0.1:{port}",
        "/etc/ssl/users.example.com.pem": str(CERTIFICATE),
        "/etc/ssl/users.example.com.key": str(CERTIFICATE),
    }.items():
        assert shown in site
        site = site.replace(shown, real)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder}/{kind};\n" for kind in kinds)
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/nginx.pid;\n"
        f"events {{}}\nhttp {{\naccess_log off;\n{temporary}{site}\n}}\n"
    )
    with listening(["nginx", "-e", f"{folder}/error.log", "-c", f"{folder}/nginx.conf"], port):
        yield port


def request(port: int, host: str, method: str, path: str, **more: Any) -> httpx.Response:
    """Send a request to 127.0.0.1 over TLS as if it had this name, without verifying the certificate."""
    headers = {"Host": host} | more.pop("headers", {})
    # From another address than the proxy's.
    transport = httpx.HTTPTransport(verify=False, local_address="127.0.0.2")
    with httpx.Client(transport=transport, trust_env=False, timeout=DEADLINE) as client:
        return client.request(
            method, f"https://127.0.0.1:{port}{path}", headers=headers, extensions={"sni_hostname": host}, **more
        )


@needs_nginx
def test_nginx_passes_on_client_addresses_and_request_ids(start: StartService, tmp_path: Path) -> None:
    service = start(USERSVC_TRUSTED_PROXIES="127.0.0.1", USERSVC_REGISTER_RATE="2/minute")
    with nginx(tmp_path, service) as port:
        send = partial(request, port, "users.example.com")
        # nginx replaces forged addresses.
        statuses = [
            send("POST", "/register", json=person(), headers={"X-Forwarded-For": f"192.0.2.{number}"}).status_code
            for number in range(3)
        ]
        assert statuses == [201, 201, 429]
        listed = send("GET", "/users")
        assert len(listed.json()["data"]) == 2
        assert listed.headers["Strict-Transport-Security"] == "max-age=31536000"
        assert send("GET", "/metrics").status_code == 404
        service.wait_for_output(f"request_id={listed.headers['X-Request-ID']}")
        for request_id, kept in (("the-one", True), ("with spaces", False)):
            response = send("GET", "/livez", headers={"X-Request-ID": request_id})
            assert (response.headers["X-Request-ID"] == request_id) is kept


@needs_nginx
def test_nginx_does_not_respond_to_other_hosts(start: StartService, tmp_path: Path) -> None:
    context = ssl._create_unverified_context()
    expected = {
        b"GET /livez HTTP/1.1\r\nHost: users.example.com\r\n": b"HTTP/1.1 200 ",
        b"GET /livez HTTP/1.1\r\nHost: USERS.example.com.:443\r\n": b"HTTP/1.1 200 ",
        b"GET /livez HTTP/1.1\r\nHost: evil.example\r\n": b"",
        b"GET http://evil.example/livez HTTP/1.1\r\nHost: users.example.com\r\n": b"",
    }
    with nginx(tmp_path, start()) as port:
        with pytest.raises(httpx.ConnectError):
            request(port, "evil.example", "GET", "/livez")
        for head, beginning in expected.items():
            plain = socket.create_connection(("127.0.0.1", port), DEADLINE)
            with context.wrap_socket(plain, server_hostname="users.example.com") as tls:
                tls.sendall(head + b"Connection: close\r\n\r\n")
                assert tls.recv(13) == beginning, head


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")
def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    unit = tmp_path / "usersvc.service"
    text = (DEPLOY / "systemd/usersvc.service").read_text("utf-8")
    # systemd-analyze checks that the program exists.
    assert "/opt/usersvc/bin/usersvc" in text
    unit.write_text(text.replace("/opt/usersvc/bin/usersvc", sys.executable))
    command = ["systemd-analyze", "verify", "--man=no", str(unit)]
    verified = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert "usersvc.service" not in verified.stderr, verified.stderr
    assert verified.returncode == 0, verified.stderr


@pytest.mark.parametrize(
    ("runner", "option"), [("uvicorn", "--port {}"), ("hypercorn", "--bind 127.0.0.1:{}"), ("granian", "--port {}")]
)
def test_another_asgi_server_runs_the_whole_service(tmp_path: Path, runner: str, option: str) -> None:
    [documented] = re.findall(rf"^{runner} .*$", (ROOT / "docs/deploy.md").read_text("utf-8"), re.MULTILINE)
    port = free_port()
    words = f"{documented} {option}".format(port).replace('"', "").split()
    command = [str(Path(sys.executable).parent / words[0]), *words[1:]]
    with running(tmp_path, {"USERSVC_PORT": str(port)}, command) as service, service.client() as client:
        user = register(client, email="alice@example.com")
        assert client.get("/users").json()["data"] == [user]
        service.wait_for_output("sent a welcome mail to alice@example.com")
