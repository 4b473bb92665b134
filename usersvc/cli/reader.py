"""Reads records of users from CSV (RFC 4180) and NDJSON."""

import csv
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

from usersvc.cli.csv_injection import unescape
from usersvc.cli.exit_codes import Failure
from usersvc.cli.formats import OPTIONAL, REQUIRED, Format
from usersvc.domain.errors import Violation
from usersvc.strict_json import InvalidJson, loads

MAX_RECORD_BYTES = 64 * 1024
"""Bytes. A usual record has a few hundred."""

FIELDS = (*REQUIRED, *OPTIONAL)


@dataclass(frozen=True, slots=True)
class Record:
    """The record of a user: one line, or several if a quoted cell has line breaks."""

    number: int
    """Of its first line; the first of the file is 1."""
    last: int
    """The number of its last line."""
    text: str = field(repr=False)
    """As in the file; of one that is too long, the beginning."""
    values: Mapping[str, Any] = field(repr=False)
    """By field, without empty and null ones."""
    violations: tuple[Violation, ...] = ()
    """Why it cannot be parsed; then there are no values."""


class Source:
    """A UTF-8 file, read line by line, and the record that is made up of the lines since the last one."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._record = bytearray()
        self._first, self._last = 1, 0
        self.bytes_read = 0

    @property
    def is_too_long(self) -> bool:
        """Whether the current record has more than ``MAX_RECORD_BYTES`` bytes."""
        return len(self._record) > MAX_RECORD_BYTES

    def lines(self) -> Iterator[str]:
        """The lines with their line feeds, truncated if longer than ``MAX_RECORD_BYTES``."""
        while piece := self._stream.readline(MAX_RECORD_BYTES + 1 + len(BOM_UTF8)):
            # Some programs begin a file with a byte order mark.
            line = piece if self.bytes_read else piece.removeprefix(BOM_UTF8)
            self.bytes_read += len(piece)
            while not piece.endswith(b"\n") and (piece := self._stream.readline(MAX_RECORD_BYTES)):
                self.bytes_read += len(piece)
            self._last += 1
            self._record += line
            yield line.decode("utf-8", "surrogateescape")

    def record(self) -> Record:
        """The lines since the last record, without values; with a violation if they are too long or not UTF-8."""
        data = bytes(self._record[:MAX_RECORD_BYTES]).rstrip(b"\r\n")
        text = data.decode("utf-8", "backslashreplace")
        violations: tuple[Violation, ...] = ()
        if self.is_too_long:
            violations = (Violation("line", "too-long", f"Must have at most {MAX_RECORD_BYTES} bytes."),)
        elif text.encode() != data:
            violations = (Violation("line", "invalid-utf-8", "Must be UTF-8."),)
        line = Record(self._first, self._last, text, {}, violations)
        self._first = self._last + 1
        self._record.clear()
        return line


def read_records(source: Source, form: Format, *, ignore_unknown: bool) -> Iterator[Record]:
    """The records; blank lines are skipped.

    Raises:
        Failure: the first line of a CSV file lacks a required column or has an unknown one; or the CSV is malformed, or
            a record is too long: where the next record begins would be a guess, so text inside a cell, which a user
            may have written, could be imported as another user.
    """
    read: Callable[[Source, bool], Iterator[Record]] = _read_csv if form is Format.CSV else _read_ndjson
    return read(source, ignore_unknown)


def _read_csv(source: Source, ignore_unknown: bool) -> Iterator[Record]:
    records = _csv_records(source)
    columns = _columns(*next(records, (source.record(), [])), ignore_unknown)
    for line, cells in records:
        if line.violations:
            yield line
        elif len(cells) == len(columns):
            yield replace(line, values=_values(dict(zip(columns, cells, strict=True))))
        elif cells:
            violation = Violation("line", "wrong-number-of-cells", f"Must have {len(columns)} cells.")
            yield replace(line, violations=(violation,))


def _csv_records(source: Source) -> Iterator[tuple[Record, list[str]]]:
    def lines() -> Iterator[str]:
        for line in source.lines():
            # With an unclosed quotation mark, csv would read the rest of the file as one cell.
            if source.is_too_long:
                raise csv.Error(f"more than {MAX_RECORD_BYTES} bytes")
            yield line

    try:
        for cells in csv.reader(lines(), strict=True):
            yield source.record(), cells
    except csv.Error as error:
        line = source.record()
        first, last = line.number, line.last
        raise Failure(
            f"lines {first} to {last} are malformed CSV ({error}); nothing was read from line {first} on"
        ) from None


def _values(cells: Mapping[str, str]) -> Mapping[str, Any]:
    values: dict[str, Any] = {name: unescape(cell) for name, cell in cells.items() if cell and name in FIELDS}
    if re.fullmatch(r"[0-9]{1,9}", values.get("age", ""), re.ASCII):
        values["age"] = int(values["age"])
    return values


def _columns(line: Record, columns: Sequence[str], ignore_unknown: bool) -> Sequence[str]:
    for violation in line.violations:
        raise Failure(f"the first line cannot be read: {violation.message}")
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        raise Failure(f"the first line must name the columns; missing: {', '.join(missing)}")
    if len(set(columns)) < len(columns):
        raise Failure("the first line names a column twice")
    unknown = [name for name in columns if name not in FIELDS]
    if unknown and not ignore_unknown:
        raise Failure(f"unknown columns: {_quoted(unknown)}; see --ignore-unknown")
    return columns


def _quoted(names: Sequence[str]) -> str:
    """The first names, quoted and truncated."""
    return ", ".join(ascii(name[:40]) for name in names[:5]) + (", ..." if len(names) > 5 else "")  # noqa: PLR2004


def _read_ndjson(source: Source, ignore_unknown: bool) -> Iterator[Record]:
    for text in source.lines():
        line = source.record()
        if text.strip():
            values, violations = ({}, line.violations) if line.violations else _members(text, ignore_unknown)
            yield replace(line, values=values, violations=violations)


def _members(text: str, ignore_unknown: bool) -> tuple[Mapping[str, Any], tuple[Violation, ...]]:
    try:
        found = loads(text.encode())
    except InvalidJson:
        found = None
    if not isinstance(found, dict):
        return {}, (Violation("line", "malformed-json", "Must be one JSON object, in strict JSON."),)
    unknown = [] if ignore_unknown else [name for name in found if name not in FIELDS]
    if unknown:
        return {}, (Violation("line", "unknown-member", "Must not have members that are not fields of a user."),)
    return {name: found[name] for name in FIELDS if found.get(name) is not None}, ()
