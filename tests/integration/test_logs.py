import json
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import UUID

import pytest

from usersvc.adapters.mail.logging_notifier import LoggingNotifier
from usersvc.application.request_context import RequestContext, request_context
from usersvc.domain.events import UserRegistered
from usersvc.logs import configure_logging, formatter, masked

log = logging.getLogger("x")


@pytest.fixture(autouse=True)
def restore_logging() -> Iterator[None]:
    root = logging.getLogger()
    level, handlers = root.level, root.handlers[:]
    yield
    root.setLevel(level)
    root.handlers[:] = handlers


async def test_the_line_for_a_mail_has_address_and_user_at_any_level(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("critical", "console")
    await LoggingNotifier().welcome(UserRegistered(UUID(int=7), "alice@example.com", datetime(2026, 1, 31, tzinfo=UTC)))
    [line] = capsys.readouterr().err.splitlines()
    assert "sent a welcome mail to alice@example.com for user 00000000-0000-0000-0000-000000000007" in line


def test_a_message_cannot_forge_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "console")
    log.debug("dropped")
    log.info("one\r\ntwo \ud800 \x1b[31m \u2028 ü 🔑", extra={"client": "a\nb\x1b[31m"})
    [line] = capsys.readouterr().err.splitlines()
    text, fields = r"one\r\ntwo \ud800 \x1b[31m \u2028 ü 🔑", r"client=a\nb\x1b[31m"
    assert re.fullmatch(rf"\S+Z \[info *\] {re.escape(text)} +\[x\] {re.escape(fields)}", line)


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_an_error_is_logged_with_type_and_frames_but_without_its_text(
    log_format: str, capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("info", log_format)
    try:
        try:
            raise KeyError("INSERT INTO users ... 'alice@example.com' \ud800")
        except KeyError as error:
            raise ValueError("hunter2hunter2") from error
    except ValueError:
        log.exception("it failed")

    [line] = capsys.readouterr().err.splitlines()
    assert re.search(r"ValueError at [\w.]*test_logs:\d+, after KeyError at [\w.]*test_logs:\d+", line)
    for secret in ("hunter2", "alice", "INSERT", "Traceback", "/"):
        assert secret not in line.partition("it failed")[2]


# Statements with their values, and queries with addresses.
@pytest.mark.parametrize("logger", ["aiosqlite", "uvicorn.access"])
def test_lines_that_contain_input_are_dropped(logger: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("debug", "console")
    logging.getLogger(logger).info("INSERT INTO users ... 'alice@example.com'")
    assert capsys.readouterr().err == ""


def test_every_line_has_the_id_of_its_request(capsys: pytest.CaptureFixture[str]) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    for log_format in ("console", "json"):
        configure_logging("info", log_format)
        log.info("outside a request")
        before = request_context.set(RequestContext("one", trace))
        log.info("inside")
        log.info("of another request", extra={"request_id": "two"})
        request_context.reset(before)

    outside, inside, another, *json_lines = capsys.readouterr().err.splitlines()
    assert "request_id" not in outside
    assert f"request_id=one trace_id={trace}" in inside
    assert "request_id=two" in another
    ids = [(line.get("request_id"), line.get("trace_id")) for line in map(json.loads, json_lines)]
    assert ids == [(None, None), ("one", trace), ("two", trace)]


def test_a_terminal_has_colours_unless_no_color_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    record = logging.makeLogRecord({"name": "x", "msg": "hello", "levelname": "INFO"})
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" not in formatter("console").format(record)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert "\x1b[" in formatter("console").format(record)
    assert "\x1b[" not in formatter("json").format(record)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[" not in formatter("console").format(record)


@pytest.mark.parametrize(
    "logger", ["x", "uvicorn", "uvicorn.error", "aiohttp.server", "aiohttp.web", "asyncio", "py.warnings"]
)
def test_json_is_one_object_a_line_also_of_libraries(logger: str, capsys: pytest.CaptureFixture[str]) -> None:
    # As uvicorn's own command does.
    logging.getLogger("uvicorn").addHandler(logging.StreamHandler())
    configure_logging("info", "json")
    logging.getLogger(logger).info("running\non %s \ud800", "ü", extra={"color_message": "\x1b[1m%s"})
    [logged] = map(json.loads, capsys.readouterr().err.splitlines())
    assert datetime.fromisoformat(logged.pop("time")).tzinfo == UTC
    assert logged == {"level": "info", "logger": logger, "message": "running\non ü \\ud800"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("alice@example.com", "a***@example.com"),
        ("for <alice@example.com>, bob@example.org!", "for <a***@example.com>, b***@example.org!"),
        ("to 'very long.one+tag@example.com'", "to 'very l***@example.com'"),
        ("@ a @b x@ and", "@ a @b x***@ and"),
        ('for "alice smith"@example.com', 'for "***@example.com'),
        (r'for "al \" ice, [b"@example.com', 'for "***@example.com'),
        ('"a" and "alice@home"@example.com', '"a" and "a***@h***@example.com'),
    ],
)
def test_addresses_are_masked(text: str, shown: str) -> None:
    assert masked(text) == shown


def test_addresses_are_masked_in_messages_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    log.info("%s", "alice@example.com", extra={"field": "alice@example.com"})
    assert capsys.readouterr().err.count("a***@example.com") == 2
