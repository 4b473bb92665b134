"""Files of users: their formats and fields, how users are written, and the protection against CSV injection (OWASP)."""

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import click

from usersvc.application.read_models import UserRecord

CSV, NDJSON = "csv", "ndjson"
FORMATS = (CSV, NDJSON)
SUFFIXES = {".csv": CSV, ".ndjson": NDJSON, ".jsonl": NDJSON}

PUBLIC = ("id", "email", "age", "registered_at")
"""The fields of an export without hashes, in order."""

# In many countries, a semicolon separates the cells of a spreadsheet.
_CELL_START = r"(?:^|(?<=;))"
_BEFORE_FORMULA = (
    # Spreadsheets skip white space and control characters before a formula, and remove quotation marks.
    r"(?=[\s\x00-\x1f\x7f-\x9f\ufeff\"＂]*"
    # The full-width and small forms are East Asian.
    r"[=+\-@＝＋－＠﹦﹢﹣﹫]"
    # OWASP also lists tabs and line breaks. The apostrophe is escaped to be unambiguous for `unescape`.
    r"|[\t\r\n'])"
)


def format_of(file: Path) -> str:
    """The format of a file with this name.

    Raises:
        click.UsageError: the suffix is unknown.
    """
    try:
        return SUFFIXES[file.suffix.lower()]
    except KeyError:
        raise click.UsageError("Give --format, or a file name that ends in .csv, .ndjson or .jsonl.") from None


def head(form: str, names: Sequence[str]) -> bytes:
    """The beginning of a file with these fields."""
    return _csv([names]) if form == CSV else b""


def encode(form: str, names: Sequence[str], records: Sequence[UserRecord]) -> bytes:
    """These fields of users: CSV (RFC 4180), or a line of JSON for each."""
    fields = [{**record.view, "password_hash": record.password_hash} for record in records]
    rows = [{name: values[name] for name in names} for values in fields]
    if form == CSV:
        return _csv([[escape(str(value)) for value in row.values()] for row in rows])
    return b"".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n" for row in rows)


def _csv(rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()


def escape(cell: str) -> str:
    """Put an apostrophe before each part of a cell that may be a formula, or that begins with an apostrophe."""
    return re.sub(f"{_CELL_START}{_BEFORE_FORMULA}", "'", cell)


def unescape(cell: str) -> str:
    """Undo ``escape``. Other cells are unchanged, also those with a single apostrophe at the beginning."""
    return re.sub(f"{_CELL_START}'{_BEFORE_FORMULA}", "", cell)
