"""The log lines of a real service, on a terminal and in a pipe."""

import json
import os
import pty
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.api import person, read_responses
from tests.e2e.server import DEADLINE, SERVE, environment, free_port, running

CONSOLE_LINE = re.compile(
    r"\d{4}-\d\d-\d\dT[\d:.]+Z \[(debug|info|warning|error|critical) *\] [^\n]+ \[[\w.]+\]( \w+=('[^']*'|\S+))*"
)
COLOUR = "\x1b["


def lines_on_a_terminal(folder: Path) -> list[str]:
    """What a service prints to a terminal, from start-up over one registration to its end."""
    screen, terminal = pty.openpty()
    port = str(free_port())
    process = subprocess.Popen(
        SERVE,
        cwd=folder,
        env=environment({"USERSVC_PORT": port, "TERM": "xterm"}),
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    lines = []
    for line in _read_lines(screen):
        lines.append(line)
        if "Uvicorn running" in line:
            httpx.post(f"http://127.0.0.1:{port}/register", json=person(), trust_env=False)
            process.terminate()
    os.close(screen)
    assert process.wait(DEADLINE) == 0
    return lines


def _read_lines(screen: int) -> Iterator[str]:
    rest = b""
    while True:
        try:
            received = os.read(screen, 65536)
        except OSError:
            # How Linux reports that no process has the terminal open.
            return
        *lines, rest = (rest + received).split(b"\r\n")
        yield from (line.decode() for line in lines)


def test_lines_on_a_terminal_have_colours(tmp_path: Path) -> None:
    lines = [line for line in lines_on_a_terminal(tmp_path) if "[" in line]
    for logger in ("uvicorn.error", "usersvc.access", "usersvc.bootstrap"):
        assert any(logger in line for line in lines)
    for line in lines:
        assert COLOUR in line
        assert CONSOLE_LINE.fullmatch(re.sub(r"\x1b\[[\d;]*m", "", line)), line


# Line breaks of HTTP and of Unicode, and what moves the cursor of a terminal.
FORGED = (
    b"%0d%0a2026-01-01T00:00:00Z%20[info]%20forged",
    b"\xc2\x85forged",
    b"\xe2\x80\xa8forged",
    b"%1b[2Jforged",
    b"\\nforged",
)
TRACE = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
REQUESTS = (
    b"GET /%b HTTP/1.1\r\nHost: test",
    b"GET /users?email=%b HTTP/1.1\r\nHost: test",
    b"GET /livez HTTP/1.1\r\nHost: %b",
    b"GET /livez HTTP/1.1\r\nHost: test\r\nUser-Agent: %b",
    b"GET /livez HTTP/1.1\r\nHost: test\r\nX-Request-ID: %b",
    b"GET /livez HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: %b",
    b"GET /livez HTTP/1.1\r\nHost: test\r\ntraceparent: %b",
    b"GET /livez HTTP/1.1\r\nHost: test\r\ntraceparent: " + TRACE + b"\r\ntracestate: %b",
    b"GET /livez HTTP/1.1\r\nHost: test\r\ntraceparent: " + TRACE + b"\r\nbaggage: %b,=;forged",
)


@pytest.mark.parametrize("log_format", ["console", "json"])
@pytest.mark.parametrize("tracing", ["off", "otlp"])
def test_input_cannot_forge_a_log_line(tmp_path: Path, log_format: str, tracing: str) -> None:
    settings = {
        "USERSVC_LOG_FORMAT": log_format,
        "USERSVC_TRUSTED_PROXIES": "127.0.0.1",
        "USERSVC_TRACING": tracing,
        "OTEL_TRACES_SAMPLER": "always_off",
    }
    requests = [template % text + b"\r\n\r\n" for template in REQUESTS for text in FORGED]
    with running(tmp_path, settings) as service, service.client() as client:
        for request in requests:
            assert read_responses(service.talk(request, then_half_close=True)), request
        client.post("/register", json=person(email="a\nforged@example.com\r\n2026"))
        service.stop()
        lines = service.output.splitlines()
        # Also no other line breaks of Unicode.
        assert lines == service.output.removesuffix("\n").split("\n")

    begin = next(number for number, line in enumerate(lines) if "Started server process" in line)
    for line in lines[begin:]:
        assert COLOUR not in line
        assert json.loads(line)["message"] if log_format == "json" else CONSOLE_LINE.fullmatch(line), line
        assert "forged" not in line
    assert sum("usersvc.access" in line for line in lines) >= len(requests)
