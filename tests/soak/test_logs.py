"""The lines of a real service, as a person at a terminal and a machine at a pipe see them."""

import json
import os
import pty
import re
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from tests.e2e.api import person, read_responses
from tests.e2e.server import DEADLINE, SERVE, environment, free_port, running

CONSOLE_LINE = re.compile(
    r"\d{4}-\d\d-\d\dT[\d:.]+Z \[(debug|info|warning|error|critical) *\] [^\n]+ \[[\w.]+\]( \w+=('[^']*'|\S+))*"
)
COLOUR = "\x1b["


@contextmanager
def at_a_terminal(folder: Path, **settings: str) -> Iterator[tuple[str, list[str]]]:
    """A service on whose terminal one looks: its address, and at the end everything that was shown."""
    master, terminal = pty.openpty()
    port = str(free_port())
    process = subprocess.Popen(
        SERVE,
        cwd=folder,
        env=environment({"USERSVC_PORT": port, "TERM": "xterm", **settings}),
        stdin=subprocess.DEVNULL,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
    )
    os.close(terminal)
    shown: list[str] = []
    with closing(os.fdopen(master, "rb", buffering=0)) as screen:
        for line in _lines(screen.fileno()):
            shown.append(line)
            if "Uvicorn running" in line:
                break
        yield f"http://127.0.0.1:{port}", shown
        process.terminate()
        shown += _lines(screen.fileno())
    assert process.wait(DEADLINE) == 0


def _lines(screen: int) -> Iterator[str]:
    begun = b""
    while True:
        try:
            piece = os.read(screen, 65536)
        except OSError:
            # Linux's way of telling that nobody writes any more.
            return
        if not piece:
            return
        *whole, begun = (begun + piece).split(b"\r\n")
        yield from (line.decode() for line in whole)


def test_on_a_terminal_lines_have_colours_uvicorns_too(tmp_path: Path) -> None:
    with at_a_terminal(tmp_path) as (url, shown):
        httpx.post(f"{url}/register", json=person(), trust_env=False)
    lines = [line for line in shown if "[" in line]
    assert {
        logger for logger in ("uvicorn.error", "usersvc.access", "usersvc.bootstrap") if logger in "".join(lines)
    } == {
        "uvicorn.error",
        "usersvc.access",
        "usersvc.bootstrap",
    }
    for line in lines:
        assert COLOUR in line
        assert CONSOLE_LINE.fullmatch(re.sub(r"\x1b\[[\d;]*m", "", line)), line


@pytest.mark.parametrize("settings", [{"NO_COLOR": "1"}, {"USERSVC_LOG_FORMAT": "json"}])
def test_a_terminal_can_be_without_colours(tmp_path: Path, settings: dict[str, str]) -> None:
    with at_a_terminal(tmp_path, **settings) as (_, shown):
        pass
    assert len(shown) > 5
    assert COLOUR not in "".join(shown)


def hostile_requests() -> list[bytes]:
    """What tries to begin a line of the log, in every place that a client can write to."""
    # A line feed, in the ways that HTTP lets through; line ends of other alphabets; and what moves a cursor.
    forged = [
        b"%0d%0a2026-01-01T00:00:00Z [info] forged",
        b"\xc2\x85forged",
        b"\xe2\x80\xa8forged",
        b"\x1b[2Jforged",
        b"\\nforged",
    ]
    requests = []
    for text in forged:
        in_target = text.replace(b" ", b"%20").replace(b"\x1b", b"%1b")
        in_field = text.replace(b"\x1b", b"")
        requests += [
            b"GET /%b HTTP/1.1\r\nHost: test\r\n\r\n" % in_target,
            b"GET /users?email=%b HTTP/1.1\r\nHost: test\r\n\r\n" % in_target,
            b"GET /livez HTTP/1.1\r\nHost: test\r\nX-Request-ID: %b\r\n\r\n" % in_field,
            b"GET /livez HTTP/1.1\r\nHost: test\r\ntraceparent: %b\r\n\r\n" % in_field,
            b"GET /livez HTTP/1.1\r\nHost: test\r\nbaggage: %b,=;forged\r\ntraceparent: %b\r\ntracestate: %b\r\n\r\n"
            % (in_field, b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01", in_field),
            b"GET /livez HTTP/1.1\r\nHost: test\r\nX-Forwarded-For: %b\r\n\r\n" % in_field,
            b"GET /livez HTTP/1.1\r\nHost: %b\r\nUser-Agent: %b\r\n\r\n" % (in_field, in_field),
        ]
    body = json.dumps(person(email="a\nforged@example.com\r\n2026")).encode()
    requests.append(
        b"POST /register HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
        % (len(body), body)
    )
    return requests


@pytest.mark.parametrize("log_format", ["console", "json"])
@pytest.mark.parametrize("tracing", ["off", "otlp"])
def test_nothing_that_a_client_sends_begins_a_line(tmp_path: Path, log_format: str, tracing: str) -> None:
    settings = {
        "USERSVC_LOG_FORMAT": log_format,
        "USERSVC_TRUSTED_PROXIES": "127.0.0.1",
        "USERSVC_TRACING": tracing,
        "OTEL_TRACES_SAMPLER": "always_off",
    }
    requests = hostile_requests()
    with running(tmp_path, settings) as service:
        for request in requests:
            answers = service.talk(request, then_half_close=True)
            assert read_responses(answers), request
        service.stop()
        lines = service.output.splitlines()
        # Whatever Unicode takes for an end of a line has been split at, too.
        assert lines == service.output.removesuffix("\n").split("\n")

    begin = next(number for number, line in enumerate(lines) if "Started server process" in line)
    told = lines[begin:]
    for line in told:
        assert COLOUR not in line
        if log_format == "json":
            assert {"time", "level", "logger", "message"} <= set(json.loads(line))
        else:
            assert CONSOLE_LINE.fullmatch(line), line
        assert "forged" not in line
    assert sum("usersvc.access" in line for line in told) >= len(requests)
