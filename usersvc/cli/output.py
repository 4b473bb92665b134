"""What commands print, and how they fail: data on standard output, messages on standard error, and exit codes."""

import json
import os
import sys
from typing import IO, Any

import click

FAILED, REFUSED, SOME_REJECTED = 1, 2, 3
"""Exit codes: failure; invalid command line or setting; import with rejected lines."""


class Failure(click.ClickException):
    """A command failed; the message is one line."""

    def __init__(self, message: str, exit_code: int = FAILED) -> None:
        super().__init__(message)
        self.exit_code = exit_code  # type: ignore[misc]  # click declares it for the class, and reads it of the instance

    def show(self, file: IO[Any] | None = None) -> None:
        """Print the message."""
        from usersvc.logs import plain  # takes longer to import than most commands need

        # It may contain a file name, which may contain control characters.
        print_message(f"usersvc: {plain(self.message)}")


class Stopped(Failure):
    """A signal stopped a command; as in shells, the exit code is 128 plus the number of the signal."""

    def __init__(self, signal_number: int) -> None:
        super().__init__("stopped", 128 + signal_number)


def print_message(text: str) -> None:
    """Print a message for a person, apart from the data."""
    print(text, file=sys.stderr)


def print_json(document: Any, *, indent: int | None = 2) -> None:
    """Print a document as JSON, in ASCII if standard output has another encoding than UTF-8."""
    in_utf8 = sys.stdout.encoding.lower().startswith("utf")
    print(json.dumps(document, indent=indent, ensure_ascii=not in_utf8))


def discard_output() -> None:
    """Discard what standard output still buffers, so that it does not fail again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
