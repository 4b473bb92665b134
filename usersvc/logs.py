"""How log lines look and where they go."""

import logging
import logging.config
from datetime import UTC, datetime

import orjson


class ConsoleFormatter(logging.Formatter):
    """For people: one line, whatever a message holds; a traceback follows on lines of its own."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-7s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """Keep what came from outside from forging a line of its own."""
        record.message = (
            record.message.encode("utf-8", "backslashreplace").decode().replace("\n", "\\n").replace("\r", "\\r")
        )
        return super().formatMessage(record)


class JsonFormatter(logging.Formatter):
    """For machines: one JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC)
            .isoformat(timespec="milliseconds")
            .replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage().encode("utf-8", "backslashreplace").decode(),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
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
