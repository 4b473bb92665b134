"""What commands write, and how they fail: data on standard output or in files, messages, and exit codes."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
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


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A new file, readable by its owner only, that appears at ``path`` when the block ends without an error.

    It is written in a temporary folder, with any journal of its writer. Raises ``Failure`` if ``path`` exists, or the
    file cannot be written.
    """
    folder = path.absolute().parent
    try:
        if path.exists():
            raise FileExistsError
        with TemporaryDirectory(prefix=f".{path.name}.", dir=folder) as own_folder:
            unfinished = Path(own_folder, path.name)
            unfinished.touch(0o600)
            yield unfinished
            _sync(unfinished)
            # Unlike a rename, this never replaces a file.
            os.link(unfinished, path)
            _sync(folder)
    except FileExistsError:
        raise Failure(f"{path} exists already") from None
    except OSError as error:
        raise Failure(f"cannot write {path}: {error.strerror}") from None


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
