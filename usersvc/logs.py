"""Log lines: structlog renders the records of the ``logging`` module, for the console or as JSON."""

import logging
import logging.config
import os
import sys
import traceback
from typing import Any

import orjson
import structlog
from structlog.typing import EventDict, Processor

from usersvc.application.request_context import request_context

MAIL_LOGGER = "usersvc.adapters.mail.logging_notifier"
"""Its lines stand for mails, so they name the address in full."""

MAX_CAUSES, MAX_FRAMES = 5, 8
"""How many chained errors, and how many frames of each, a line names."""


def plain(text: str) -> str:
    """Escape control characters, line breaks and lone surrogates."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def masked(text: str) -> str:
    """Mask email addresses: the first character and the domain of each remain."""
    if "@" not in text:
        return text
    *before, last = text.split("@")
    return "".join(f"{_mask_local_part(part)}@" for part in before) + last


def _mask_local_part(text: str) -> str:
    """Mask the local part at the end of the text before an @: it begins after a space, quotation mark or bracket.

    A quoted local part may contain those, and an @, too (RFC 5321, section 4.1.2).
    """
    if text.endswith('"'):
        begin = text.rfind('"', 0, -1)
        while begin > 0 and text[begin - 1] == "\\":
            begin = text.rfind('"', 0, begin)
        return f"{text[: max(begin, 0) + 1]}***"
    begin = max(text.rfind(mark) for mark in " \t\n\"'<([=,;") + 1
    return f"{text[: begin + 1]}***" if begin < len(text) else text


def _add_request_context(_: Any, __: str, line: EventDict) -> EventDict:
    """Add the ids of the current request and trace, unless the line has its own."""
    context = request_context.get()
    if context is not None:
        line.setdefault("request_id", context.request_id)
        if context.trace_id is not None:
            line.setdefault("trace_id", context.trace_id)
    return line


def _redact(_: Any, __: str, line: EventDict) -> EventDict:
    """Mask addresses, except in the lines that stand for mails, and replace a traceback with a summary."""
    record: logging.LogRecord = line["_record"]
    error = line.pop("exc_info", None)
    line.pop("stack_info", None)
    # uvicorn's message with colours.
    line.pop("color_message", None)
    for name, value in line.items():
        if isinstance(value, str) and not (name == "message" and record.name == MAIL_LOGGER):
            line[name] = masked(value)
    if error:
        line["error"] = _error_summary(error[1])
    return line


def _error_summary(error: BaseException | None) -> str:
    """The type and frames of an error and of its causes, innermost frame first, in one line.

    Without the error's text, which may contain anything: a statement with its values, a path, an address.
    """
    summaries: list[str] = []
    while error is not None and len(summaries) < MAX_CAUSES:
        frames = reversed(list(traceback.walk_tb(error.__traceback__)))
        where = [f"{frame.f_globals.get('__name__')}:{line}" for frame, line in frames]
        summaries.append(f"{type(error).__name__} at {' < '.join(where[:MAX_FRAMES]) or 'unknown'}")
        error = error.__cause__ or error.__context__
    return ", after ".join(summaries)


def _escape(_: Any, __: str, line: EventDict) -> EventDict:
    """Keep each text on its line."""
    return {name: plain(value) if isinstance(value, str) else value for name, value in line.items()}


def _as_json(_: Any, __: str, line: EventDict) -> str:
    encodable = {
        name: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
        for name, value in line.items()
    }
    return orjson.dumps(encodable, default=str).decode()


def formatter(log_format: str) -> logging.Formatter:
    """The formatter of all records, of this service and its libraries: ``console`` or ``json``."""
    render: list[Processor]
    if log_format == "json":
        render = [_as_json]
    else:
        colours = sys.stderr is not None and sys.stderr.isatty() and not os.environ.get("NO_COLOR")
        render = [
            _escape,
            structlog.dev.ConsoleRenderer(
                colors=colours, pad_event_to=0, sort_keys=False, event_key="message", timestamp_key="time"
            ),
        ]
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            structlog.processors.EventRenamer("message"),
            structlog.stdlib.ExtraAdder(),
            _add_request_context,
        ],
        processors=[_redact, structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
    )


def logging_config(level: str, log_format: str) -> dict[str, object]:
    """The configuration of the ``logging`` module.

    Args:
        level: the name of a level, in lower case.
        log_format: ``console`` or ``json``.
    """
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"default": {"()": "usersvc.logs.formatter", "log_format": log_format}},
        "handlers": {
            "console": {"class": "logging.StreamHandler", "formatter": "default", "stream": "ext://sys.stderr"}
        },
        "root": {"level": level.upper(), "handlers": ["console"]},
        "loggers": {
            # At debug level it logs statements with their values: addresses and hashes.
            "aiosqlite": {"level": "WARNING"},
            "uvicorn": {"level": "NOTSET", "handlers": [], "propagate": True},
            "uvicorn.error": {"level": "NOTSET"},
            # It logs query strings, which may contain addresses; usersvc.web has an access log of its own.
            "uvicorn.access": {"level": "CRITICAL", "handlers": [], "propagate": False},
        },
    }


def configure_logging(level: str, log_format: str) -> None:
    """Configure the ``logging`` module of this process."""
    logging.config.dictConfig(logging_config(level, log_format))
