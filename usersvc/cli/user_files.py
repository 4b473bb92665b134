"""Files of users: their formats and fields, how users are written, and the protection against CSV injection (OWASP)."""

import csv
import io
import json
import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import click

from usersvc.application.clock import timestamp
from usersvc.application.read_models import UserRecord

CSV, NDJSON = "csv", "ndjson"
FORMATS = (CSV, NDJSON)
SUFFIXES = {".csv": CSV, ".ndjson": NDJSON, ".jsonl": NDJSON}
"""The format by the suffix of the file name."""

PUBLIC = ("id", "email", "age", "registered_at")
"""The fields of an export without hashes, in order."""

QUOTE = "'"
SEPARATOR = ";"
"""The field separator of spreadsheets in many countries. The text after it begins an unquoted cell there."""

_FORMULA = re.compile(
    # Spreadsheets skip white space and control characters before a formula, and remove quotation marks.
    r"[\s\x00-\x1f\x7f-\x9f\ufeff\"＂]*"
    # The full-width and small forms are East Asian.
    r"[=+\-@＝＋－＠﹦﹢﹣﹫]"
    # OWASP also lists tabs and line breaks. The apostrophe is escaped to be unambiguous for `unescape`.
    r"|[\t\r\n']"
)


def format_of(file: Path) -> str:
    """The format of a file with this name.

    Raises:
        click.UsageError: the suffix is unknown.
    """
    form = SUFFIXES.get(file.suffix.lower())
    if form is None:
        raise click.UsageError("Give --format, or a file name that ends in .csv, .ndjson or .jsonl.")
    return form


def head(form: str, names: Sequence[str]) -> bytes:
    """The beginning of a file with these fields."""
    return _csv([names]) if form == CSV else b""


def encode(form: str, names: Sequence[str], records: Sequence[UserRecord]) -> bytes:
    """These fields of users: CSV (RFC 4180), or a line of JSON for each."""
    rows = [
        {name: record.age if name == "age" else _text(getattr(record, name)) for name in names} for record in records
    ]
    if form == CSV:
        return _csv([[escape(str(value)) for value in row.values()] for row in rows])
    return b"".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n" for row in rows)


def _text(value: object) -> str:
    return timestamp(value) if isinstance(value, datetime) else str(value)


def _csv(rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def escape(cell: str) -> str:
    """Put an apostrophe before each part of a cell that may be a formula, or that begins with an apostrophe."""
    return SEPARATOR.join(f"{QUOTE}{part}" if _FORMULA.match(part) else part for part in cell.split(SEPARATOR))


def unescape(cell: str) -> str:
    """Undo ``escape``. Other cells are unchanged, also those with a single apostrophe at the beginning."""
    return SEPARATOR.join(
        part[1:] if part.startswith(QUOTE) and _FORMULA.match(part, 1) else part for part in cell.split(SEPARATOR)
    )
