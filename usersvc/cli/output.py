"""What commands write: data to standard output, and words for people to standard error."""

import json
import sys
from itertools import count
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar


def say(words: str) -> None:
    """Tell a person something that is no part of the data."""
    print(words, file=sys.stderr)


def progress_bar(label: str, length: int | None, *, hidden: bool = False) -> "ProgressBar[int]":
    """A bar on a terminal, to be entered and then updated; without a known length it tells how far it is."""
    return click.progressbar(
        count() if length is None else None,
        length,
        label,
        show_pos=length is None,
        file=sys.stderr,
        hidden=hidden or not sys.stderr.isatty(),
    )


def print_json(document: Any, *, indent: int | None = 2) -> None:
    """Print a document as JSON, escaped where the terminal or pipe cannot take it as it is."""
    text = json.dumps(document, indent=indent, ensure_ascii=False)
    print(text if _can_print(text) else json.dumps(document, indent=indent))


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
