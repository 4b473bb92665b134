"""Formats of files with users."""

from enum import StrEnum
from pathlib import Path

import click

REQUIRED = ("email", "age", "password_hash")
OPTIONAL = ("id", "registered_at")
PUBLIC = ("id", "email", "age", "registered_at")
"""The fields of an export without hashes, in order."""


class Format(StrEnum):
    """A format of files with users."""

    CSV = "csv"
    NDJSON = "ndjson"


FORMATS = [form.value for form in Format]


def format_of(file: Path, chosen: str | None) -> Format:
    """The chosen format, or else that of the file's suffix.

    Raises:
        click.UsageError: none is chosen, and the suffix is unknown.
    """
    if chosen is not None:
        return Format(chosen)
    found = {".csv": Format.CSV, ".ndjson": Format.NDJSON, ".jsonl": Format.NDJSON}.get(file.suffix.lower())
    if found is None:
        raise click.UsageError("Give --format, or a file name that ends in .csv, .ndjson or .jsonl.")
    return found
