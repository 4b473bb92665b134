"""The log lines of a real service."""

import json
import re
from pathlib import Path

import pytest

from tests.e2e.api import person, read_responses
from tests.e2e.server import running

CONSOLE_LINE = re.compile(
    r"\d{4}-\d\d-\d\dT[\d:.]+Z \[(debug|info|warning|error|critical) *\] [^\n]+ \[[\w.]+\]( \w+=('[^']*'|\S+))*"
)
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
def test_input_cannot_forge_a_log_line(tmp_path: Path, log_format: str) -> None:
    settings = {
        "USERSVC_LOG_FORMAT": log_format,
        "USERSVC_TRUSTED_PROXIES": "127.0.0.1",
        "USERSVC_TRACING": "otlp",
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
        assert json.loads(line)["message"] if log_format == "json" else CONSOLE_LINE.fullmatch(line), line
        assert "forged" not in line
    assert sum("usersvc.access" in line for line in lines) >= len(requests)
