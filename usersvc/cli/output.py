"""Output of commands: data to standard output, messages to standard error."""

import json
import sys
from itertools import count
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar


def print_message(text: str) -> None:
    """Print a message for a person, apart from the data."""
    print(text, file=sys.stderr)


def progress_bar(label: str, length: int | None, *, hidden: bool = False) -> "ProgressBar[int]":
    """A progress bar, shown on terminals only; without a length it shows a count."""
    return click.progressbar(
        count() if length is None else None,
        length,
        label,
        show_pos=length is None,
        file=sys.stderr,
        hidden=hidden or not sys.stderr.isatty(),
    )


def print_json(document: Any, *, indent: int | None = 2) -> None:
    """Print a document as JSON, in ASCII if the encoding of standard output requires it."""
    text = json.dumps(document, indent=indent, ensure_ascii=False)
    print(text if _can_print(text) else json.dumps(document, indent=indent))


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
