"""What commands write: data to standard output, and words for people to standard error."""

import json
import sys
from typing import Any


def say(words: str) -> None:
    """Tell a person something that is no part of the data."""
    print(words, file=sys.stderr)


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
