"""What files of users look like."""

from enum import StrEnum
from pathlib import Path

import click

REQUIRED = ("email", "age", "password_hash")
OPTIONAL = ("id", "registered_at")
PUBLIC = ("id", "email", "age", "registered_at")
"""What anybody may see, in the order in which it is written."""


class Format(StrEnum):
    """How users are written down."""

    CSV = "csv"
    NDJSON = "ndjson"


FORMATS = [form.value for form in Format]


def format_of(file: Path, chosen: str | None) -> Format:
    """The format that was chosen, or else the one that the file's name tells.

    Raises:
        click.UsageError: neither tells.
    """
    if chosen is not None:
        return Format(chosen)
    found = {".csv": Format.CSV, ".ndjson": Format.NDJSON, ".jsonl": Format.NDJSON}.get(file.suffix.lower())
    if found is None:
        raise click.UsageError("Give --format: the name of the file does not tell it (.csv, .ndjson, .jsonl).")
    return found
