"""How log lines look and where they go: structlog writes what everybody hands to the ``logging`` module."""

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
"""Whose lines stand for mails, and so name the address in full."""

NAMED_CAUSES, NAMED_PLACES = 5, 8
"""How much of an error's history a line tells."""


def plain(text: str) -> str:
    """Text that neither moves a terminal's cursor nor begins a line of its own, and that UTF-8 can hold."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def masked(text: str) -> str:
    """Text in which of each email address only the first character and the domain are left."""
    if "@" not in text:
        return text
    *before, last = text.split("@")
    return "".join(f"{_masked_end(part)}@" for part in before) + last


def _masked_end(text: str) -> str:
    """What stands before an @: the local part goes back to the last space, quotation mark or bracket.

    One in quotation marks may hold those, and another @, too (RFC 5321, section 4.1.2).
    """
    if text.endswith('"'):
        begin = text.rfind('"', 0, -1)
        while begin > 0 and text[begin - 1] == "\\":
            begin = text.rfind('"', 0, begin)
        return f"{text[: max(begin, 0) + 1]}***"
    begin = max(text.rfind(mark) for mark in " \t\n\"'<([=,;") + 1
    return f"{text[: begin + 1]}***" if begin < len(text) else text


def _with_request_context(_: Any, __: str, line: EventDict) -> EventDict:
    """Name the request that led to the line, unless it does so itself."""
    context = request_context.get()
    if context is not None:
        line.setdefault("request_id", context.request_id)
        if context.trace_id is not None:
            line.setdefault("trace_id", context.trace_id)
    return line


def _told(_: Any, __: str, line: EventDict) -> EventDict:
    """What may be told: addresses masked but in the lines that stand for mails, and of an error its kind and place."""
    record: logging.LogRecord = line["_record"]
    error = line.pop("exc_info", None)
    line.pop("stack_info", None)
    # uvicorn's, with colours.
    line.pop("color_message", None)
    for name, value in line.items():
        if isinstance(value, str) and not (name == "message" and record.name == MAIL_LOGGER):
            line[name] = masked(value)
    if error:
        line["error"] = _kind_and_place(error[1])
    return line


def _kind_and_place(error: BaseException | None) -> str:
    """An error in one line, with the errors that led to it, innermost first, and never by its text or as a traceback.

    An error's text may hold anything: a statement with its values, a path, an address.
    """
    told: list[str] = []
    while error is not None and len(told) < NAMED_CAUSES:
        places = reversed(list(traceback.walk_tb(error.__traceback__)))
        where = [f"{frame.f_globals.get('__name__')}:{line}" for frame, line in places]
        told.append(f"{type(error).__name__} at {' < '.join(where[:NAMED_PLACES]) or 'an unknown place'}")
        error = error.__cause__ or error.__context__
    return ", after ".join(told)


def _printable(_: Any, __: str, line: EventDict) -> EventDict:
    """Every text so that it stays in its line."""
    return {name: plain(value) if isinstance(value, str) else value for name, value in line.items()}


def _as_json(_: Any, __: str, line: EventDict) -> str:
    encodable = {
        name: value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value
        for name, value in line.items()
    }
    return orjson.dumps(encodable, default=str).decode()


def formatter(log_format: str) -> logging.Formatter:
    """What makes a line of a record, whoever wrote it: for people (``console``), or ``json``."""
    render: list[Processor]
    if log_format == "json":
        render = [_as_json]
    else:
        colours = sys.stderr is not None and sys.stderr.isatty() and not os.environ.get("NO_COLOR")
        render = [
            _printable,
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
            _with_request_context,
        ],
        processors=[_told, structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
    )


def logging_config(level: str, log_format: str) -> dict[str, object]:
    """The configuration of the ``logging`` module.

    Args:
        level: the name of a level, in small letters.
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
            # At debug level it writes statements with their values: addresses and hashes.
            "aiosqlite": {"level": "WARNING"},
            "uvicorn": {"level": "NOTSET", "handlers": [], "propagate": True},
            "uvicorn.error": {"level": "NOTSET"},
            # It writes whole queries, and so addresses; the web side has an access log of its own.
            "uvicorn.access": {"level": "CRITICAL", "handlers": [], "propagate": False},
        },
    }


def configure_logging(level: str, log_format: str) -> None:
    """Set up logging for the process; see ``logging_config``."""
    logging.config.dictConfig(logging_config(level, log_format))
