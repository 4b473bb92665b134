import json
import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usersvc.adapters.mail.logging_notifier import LoggingNotifier
from usersvc.application.request_context import RequestContext, request_context
from usersvc.domain.events import UserRegistered
from usersvc.logs import configure_logging, formatter, masked

EVENT = UserRegistered(UUID(int=7), "alice@example.com", datetime(2026, 1, 31, tzinfo=UTC))


@pytest.fixture(autouse=True)
def other_tests_logging() -> Iterator[None]:
    root = logging.getLogger()
    before = root.level, root.handlers[:]
    yield
    root.setLevel(before[0])
    root.handlers[:] = before[1]


async def test_the_line_for_a_mail_has_address_and_user_at_any_level(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("critical", "console")
    await LoggingNotifier().welcome(EVENT)

    [line] = capsys.readouterr().err.splitlines()
    assert "sent a welcome mail to alice@example.com for user 00000000-0000-0000-0000-000000000007" in line


def test_a_message_cannot_forge_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "console")
    logging.getLogger("x").info("one\r\ntwo \ud800 \x1b[31m \u2028 ü 🔑")
    [line] = capsys.readouterr().err.splitlines()
    assert " one\\r\\ntwo \\ud800 \\x1b[31m \\u2028 ü 🔑 " in line


def test_extra_fields_cannot_forge_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "console")
    logging.getLogger("x").info("one", extra={"client": "a\nb\x1b[31m"})
    [line] = capsys.readouterr().err.splitlines()
    assert "client=a\\nb\\x1b[31m" in line


def test_lines_below_the_level_are_dropped(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("warning", "console")
    logging.getLogger("x").info("not this")
    logging.getLogger("x").warning("but this")
    [line] = capsys.readouterr().err.splitlines()
    assert "[warning" in line
    assert "but this" in line
    assert "[x]" in line


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
        logging.getLogger("x").exception("it failed")

    [line] = capsys.readouterr().err.splitlines()
    assert re.search(r"ValueError at [\w.]*test_logs:\d+, after KeyError at [\w.]*test_logs:\d+", line)
    for secret in ("hunter2", "alice", "INSERT", "Traceback", "/"):
        assert secret not in line.partition("it failed")[2]


def test_json_is_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    try:
        raise ValueError("boom")
    except ValueError:
        logging.getLogger("x").exception("it\nfailed \ud800")

    [line] = capsys.readouterr().err.splitlines()
    told = json.loads(line)
    assert (told["level"], told["logger"], told["message"]) == ("error", "x", "it\nfailed \\ud800")
    assert told["error"].startswith("ValueError at ")
    assert datetime.fromisoformat(told["time"]).tzinfo == UTC


def test_statements_with_their_values_are_not_logged(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("debug", "console")
    logging.getLogger("aiosqlite").debug("executing INSERT INTO users ... 'alice@example.com'")
    assert capsys.readouterr().err == ""


def test_the_access_log_of_uvicorn_is_off_as_it_has_queries(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("debug", "console")
    logging.getLogger("uvicorn.access").info("GET /users?email=alice@example.com")
    assert capsys.readouterr().err == ""


def lines_of(log_format: str, capsys: pytest.CaptureFixture[str]) -> list[str]:
    configure_logging("info", log_format)
    log = logging.getLogger("x")
    log.info("without a request")
    before = request_context.set(RequestContext("one", "0af7651916cd43dd8448eb211c80319c"))
    log.info("within")
    log.info("of another", extra={"request_id": "two"})
    request_context.reset(before)
    return capsys.readouterr().err.splitlines()


def test_every_line_has_the_id_of_its_request(capsys: pytest.CaptureFixture[str]) -> None:
    without, within, another = map(json.loads, lines_of("json", capsys))
    assert "request_id" not in without
    assert (within["request_id"], within["trace_id"]) == ("one", "0af7651916cd43dd8448eb211c80319c")
    assert another["request_id"] == "two"

    without, within, another = lines_of("console", capsys)
    assert "request_id" not in without
    assert "request_id=one trace_id=0af7651916cd43dd8448eb211c80319c" in within
    assert "request_id=two" in another


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
    "logger", ["uvicorn", "uvicorn.error", "aiohttp.server", "aiohttp.web", "asyncio", "py.warnings"]
)
def test_lines_of_libraries_have_the_same_format(logger: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    logging.getLogger(logger).info("running on %s", "x", extra={"color_message": "\x1b[1m%s"})
    told = json.loads(capsys.readouterr().err)
    assert set(told) == {"time", "level", "logger", "message"}
    assert told["message"] == "running on x"


@pytest.mark.parametrize("log_format", ["console", "json"])
@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ("alice@example.com", "a***@example.com"),
        ("for <alice@example.com>, bob@example.org!", "for <a***@example.com>, b***@example.org!"),
        ("to 'very long.one+tag@example.com'", "to 'very l***@example.com'"),
        ("@ a @b x@", "@ a @b x***@"),
        ("nothing to hide", "nothing to hide"),
    ],
)
def test_addresses_are_masked(log_format: str, said: str, shown: str, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", log_format)
    logging.getLogger("anybody").info("%s", said, extra={"beside": said})
    assert capsys.readouterr().err.count(shown) == 2


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        ('for "alice smith"@example.com', 'for "***@example.com'),
        (r'for "al \" ice, [b"@example.com', 'for "***@example.com'),
        ('"a" and "alice@home"@example.com', '"a" and "a***@h***@example.com'),
    ],
)
def test_quoted_addresses_are_masked(said: str, shown: str) -> None:
    assert masked(said) == shown


@given(st.text(), st.text())
def test_masking_keeps_the_first_character_and_the_rest_of_the_text(before: str, after: str) -> None:
    shown = masked(f"{before} alice.b@example.com {after}")
    assert " a***@example.com " in shown
    assert "lice.b" not in shown
    assert masked(before.replace("@", "")) == before.replace("@", "")
