"""Log lines: structlog renders the records of the ``logging`` module, for the console or as JSON."""

import logging
import os
import sys
import traceback
from functools import partial
from typing import Any

import structlog
from structlog.typing import EventDict, Processor

from usersvc.application.request_context import request_context


def plain(text: str) -> str:
    """Escape control characters, line breaks and lone surrogates."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def masked(text: str) -> str:
    """Mask email addresses: the first character and the domain of each remain."""
    *parts, last = text.split("@")
    for number, part in enumerate(parts):
        if part.endswith('"'):
            # A quoted local part may contain the marks below (RFC 5321, section 4.1.2): mask from the first quote.
            begin = max(part.find('"', 0, -1), 0)
        else:
            begin = max(part.rfind(mark) for mark in " \t\n\"'<([=,;") + 1
        if begin < len(part):
            parts[number] = f"{part[: begin + 1]}***"
    return "@".join([*parts, last])


def _add_request_context(_: Any, __: str, line: EventDict) -> EventDict:
    if (context := request_context.get()) is not None:
        line.setdefault("request_id", context.request_id)
        if context.trace_id is not None:
            line.setdefault("trace_id", context.trace_id)
    return line


def _redact(_: Any, __: str, line: EventDict, *, escapes: bool) -> EventDict:
    # Texts of uvicorn and `logging` that are not in the message.
    line.pop("color_message", None)
    line.pop("stack_info", None)
    for name, value in line.items():
        if isinstance(value, str):
            # A message of this logger stands for a mail, so it names the address in full.
            in_full = name == "message" and line["_record"].name == "usersvc.adapters.mail.logging_notifier"
            text = value if in_full else masked(value)
            # Lone surrogates are not UTF-8, and strict JSON parsers reject them.
            line[name] = plain(text) if escapes else text.encode("utf-8", "backslashreplace").decode()
    if error := line.pop("exc_info", None):
        line["error"] = _error_summary(error[1])
    return line


def _error_summary(error: BaseException | None) -> str:
    """The types and frames of an error and up to four causes, without texts, which may contain secrets."""
    summaries: list[str] = []
    while error is not None and len(summaries) < 5:  # noqa: PLR2004  # as the docstring says
        where = [f"{frame.f_globals.get('__name__')}:{line}" for frame, line in traceback.walk_tb(error.__traceback__)]
        summaries.append(f"{type(error).__name__} at {' < '.join(reversed(where[-8:])) or 'unknown'}")
        error = error.__cause__ or error.__context__
    return ", after ".join(summaries)


def formatter(log_format: str) -> logging.Formatter:
    """The formatter of all records, of this service and its libraries: ``console`` or ``json``."""
    render: Processor = structlog.processors.JSONRenderer(ensure_ascii=False, separators=(",", ":"))
    if log_format != "json":
        colours = sys.stderr is not None and sys.stderr.isatty() and not os.environ.get("NO_COLOR")
        render = structlog.dev.ConsoleRenderer(
            colors=colours, pad_event_to=0, sort_keys=False, event_key="message", timestamp_key="time"
        )
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.EventRenamer("message"),
            structlog.stdlib.ExtraAdder(),
            _add_request_context,
        ],
        processors=[
            partial(_redact, escapes=log_format == "console"),
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            render,
        ],
    )


def configure_logging(level: str, log_format: str) -> None:
    """Configure the ``logging`` module for a level (in lower case) and a format (``console`` or ``json``)."""
    handler = logging.StreamHandler()
    handler.setFormatter(formatter(log_format))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # At debug level it logs statements with their values: addresses and hashes.
    logging.getLogger("aiosqlite").setLevel("WARNING")
    # uvicorn's command has given them handlers and levels of their own.
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.setLevel("NOTSET")
        # It logs query strings, which may contain addresses; usersvc.web has an access log of its own.
        logger.propagate = name != "uvicorn.access"
