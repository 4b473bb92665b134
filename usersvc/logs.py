"""How log lines look and where they go."""

import logging
import logging.config
import traceback
from datetime import UTC, datetime
from typing import Any

import orjson

MAIL_LOGGER = "usersvc.adapters.logging_notifier"
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
    """What stands before an @: the local part goes back to the last space, quotation mark or bracket."""
    begin = max(text.rfind(mark) for mark in " \t\n\"'<([=,;") + 1
    return f"{text[: begin + 1]}***" if begin < len(text) else text


def told(record: logging.LogRecord) -> str:
    """What the line says. Addresses are masked, but in the lines that stand for mails."""
    message = record.getMessage()
    return message if record.name == MAIL_LOGGER else masked(message)


class OneLineErrors(logging.Formatter):
    """Tells an error by its kind and by where it arose, innermost first, and never by its text or as a traceback.

    An error's text may hold anything: a statement with its values, a path, an address.
    """

    def formatException(self, ei: Any) -> str:  # noqa: N802  # logging's name
        """The error in one line, with the errors that led to it."""
        told: list[str] = []
        error: BaseException | None = ei[1]
        while error is not None and len(told) < NAMED_CAUSES:
            places = reversed(list(traceback.walk_tb(error.__traceback__)))
            where = [f"{frame.f_globals.get('__name__')}:{line}" for frame, line in places]
            told.append(f"{type(error).__name__} at {' < '.join(where[:NAMED_PLACES]) or 'an unknown place'}")
            error = error.__cause__ or error.__context__
        return ", after ".join(told)


class ConsoleFormatter(OneLineErrors):
    """For people: one line each, whatever a message holds."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as a line."""
        at = datetime.fromtimestamp(record.created).astimezone().isoformat(" ", "milliseconds")
        line = plain(f"{at} {record.levelname:7} {record.name}: {told(record)}")
        return f"{line} [{self.formatException(record.exc_info)}]" if record.exc_info else line


class JsonFormatter(OneLineErrors):
    """For machines: one JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": told(record).encode("utf-8", "backslashreplace").decode(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return orjson.dumps(line).decode()


def logging_config(level: str, log_format: str) -> dict[str, object]:
    """The configuration of the ``logging`` module.

    Args:
        level: the name of a level, in small letters.
        log_format: ``console`` or ``json``.
    """
    formatter = JsonFormatter if log_format == "json" else ConsoleFormatter
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"default": {"()": formatter}},
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
