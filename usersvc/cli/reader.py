"""Reads records of users from CSV (RFC 4180) and NDJSON."""

import csv
import re
from codecs import BOM_UTF8
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import IO, Any

from usersvc.cli.output import Failure
from usersvc.cli.row_schema import FIELDS, REQUIRED
from usersvc.cli.user_files import CSV, unescape
from usersvc.domain.errors import Violation
from usersvc.strict_json import InvalidJson, loads

MAX_RECORD_BYTES = 64 * 1024
"""Bytes. A usual record has a few hundred."""


@dataclass(frozen=True, slots=True)
class Record:
    """The record of a user: one line, or several if a quoted cell has line breaks."""

    first: int
    """The number of its first line; the first of the file is 1."""
    last: int
    """The number of its last line."""
    text: str = field(repr=False)
    """As in the file."""
    values: Mapping[str, Any] = field(repr=False, default_factory=dict)
    """By field, without empty and null ones."""
    violations: tuple[Violation, ...] = ()
    """Why it cannot be parsed; then there are no values."""

    @property
    def lines(self) -> str:
        """The line numbers, for messages."""
        return f"line {self.first}" if self.first == self.last else f"lines {self.first} to {self.last}"

    def invalid(self, code: str, message: str) -> "Record":
        """This record with a violation."""
        return replace(self, violations=(Violation("line", code, message),))


class Source:
    """A UTF-8 file, read line by line, and the record that is made up of the lines since the last one."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._record = bytearray()
        self._first, self._last = 1, 0
        self.bytes_read = 0

    def lines(self) -> Iterator[str]:
        """The lines with their line feeds.

        Raises:
            Failure: the record has more than ``MAX_RECORD_BYTES``. With an unclosed quotation mark, ``csv`` would read
                the rest of the file as one cell.
        """
        while line := self._stream.readline(MAX_RECORD_BYTES + 1 + len(BOM_UTF8)):
            # Some programs begin a file with a byte order mark.
            text = line if self.bytes_read else line.removeprefix(BOM_UTF8)
            self.bytes_read += len(line)
            self._last += 1
            self._record += text
            if len(self._record) > MAX_RECORD_BYTES:
                raise self.failure(f"more than {MAX_RECORD_BYTES} bytes")
            yield text.decode("utf-8", "surrogateescape")

    def record(self) -> Record:
        """The lines since the last record, without values; with a violation if they are not UTF-8."""
        data = self._record.rstrip(b"\r\n")
        record = Record(self._first, self._last, data.decode("utf-8", "backslashreplace"))
        self._first = self._last + 1
        self._record.clear()
        return record if record.text.encode() == data else record.invalid("invalid-utf-8", "Must be UTF-8.")

    def failure(self, reason: str) -> Failure:
        """The failure to read the lines since the last record."""
        record = self.record()
        return Failure(f"{record.lines} cannot be read: {reason}; nothing from line {record.first} on was imported")


def read_records(source: Source, form: str, *, ignore_unknown: bool) -> Iterator[Record]:
    """The records; blank lines are skipped.

    Raises:
        Failure: the first line of a CSV file lacks a required column or has an unknown one; or the CSV is malformed, or
            a record is too long: where the next record begins would be a guess, so text inside a cell, which a user
            may have written, could be imported as another user.
    """
    return _read_csv(source, ignore_unknown) if form == CSV else _read_ndjson(source, ignore_unknown)


def _read_csv(source: Source, ignore_unknown: bool) -> Iterator[Record]:
    records = _csv_records(source)
    columns = _columns(*next(records, (source.record(), [])), ignore_unknown)
    for record, cells in records:
        if record.violations:
            yield record
        elif len(cells) == len(columns):
            yield replace(record, values=_values(dict(zip(columns, cells, strict=True))))
        elif cells:
            yield record.invalid("wrong-number-of-cells", f"Must have {len(columns)} cells.")


def _csv_records(source: Source) -> Iterator[tuple[Record, list[str]]]:
    try:
        for cells in csv.reader(source.lines(), strict=True):
            yield source.record(), cells
    except csv.Error as error:
        raise source.failure(str(error)) from None


def _columns(record: Record, columns: Sequence[str], ignore_unknown: bool) -> Sequence[str]:
    for violation in record.violations:
        raise Failure(f"the first line cannot be read: {violation.message}")
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        raise Failure(f"the first line must name the columns; missing: {', '.join(missing)}")
    if len(set(columns)) < len(columns):
        raise Failure("the first line names a column twice")
    unknown = [name for name in columns if name not in FIELDS]
    if unknown and not ignore_unknown:
        raise Failure(f"unknown columns: {', '.join(map(repr, unknown))}; see --ignore-unknown")
    return columns


def _values(cells: Mapping[str, str]) -> Mapping[str, Any]:
    values: dict[str, Any] = {name: unescape(cell) for name, cell in cells.items() if cell and name in FIELDS}
    if re.fullmatch(r"[0-9]{1,9}", values.get("age", "")):
        values["age"] = int(values["age"])
    return values


def _read_ndjson(source: Source, ignore_unknown: bool) -> Iterator[Record]:
    for line in source.lines():
        record = source.record()
        if record.violations:
            yield record
        elif line.strip():
            yield _parse_json(record, ignore_unknown)


def _parse_json(record: Record, ignore_unknown: bool) -> Record:
    try:
        values = loads(record.text.encode())
    except InvalidJson:
        values = None
    if not isinstance(values, dict):
        return record.invalid("malformed-json", "Must be one JSON object, in strict JSON.")
    if not ignore_unknown and any(name not in FIELDS for name in values):
        return record.invalid("unknown-member", "Must not have members that are not fields of a user.")
    return replace(record, values={name: values[name] for name in FIELDS if values.get(name) is not None})
