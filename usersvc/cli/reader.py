"""Reads users from CSV (RFC 4180) and NDJSON: what a line holds, or why it cannot be understood."""

import csv
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO

from usersvc.cli.csv_injection import original
from usersvc.cli.exit_codes import Failure
from usersvc.cli.formats import OPTIONAL, REQUIRED, Format
from usersvc.domain.errors import Violation
from usersvc.strict_json import InvalidJson, loads

LONGEST_LINE = 64 * 1024
"""Bytes of what stands for one user; it has a few hundred."""

KNOWN = (*REQUIRED, *OPTIONAL)


@dataclass(frozen=True, slots=True)
class Line:
    """What stands for one user: one line, or several when a cell in quotation marks has line breaks."""

    number: int
    """Of the first of its lines; the first of the file is 1."""
    last: int
    """The number of the last of its lines."""
    text: str = field(repr=False)
    """As it was, or the beginning of what is too long."""
    values: Mapping[str, Any] = field(repr=False)
    """By name; what is empty or null is left out."""
    violations: tuple[Violation, ...] = ()
    """Why it cannot be understood; then there are no values."""


class Source:
    """A file in UTF-8, read line by line, and the record that the lines since the last one make up."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._record = bytearray()
        self._first, self._last = 1, 0
        self.bytes_read = 0

    @property
    def is_too_long(self) -> bool:
        """Whether the current record has more than ``LONGEST_LINE`` bytes."""
        return len(self._record) > LONGEST_LINE

    def lines(self) -> Iterator[str]:
        """The lines, each with its line feed; only the beginning of what is longer than ``LONGEST_LINE`` bytes."""
        while piece := self._stream.readline(LONGEST_LINE + 1 + len(BOM_UTF8)):
            # Some programs begin a file with a byte order mark.
            line = piece if self.bytes_read else piece.removeprefix(BOM_UTF8)
            self.bytes_read += len(piece)
            while not piece.endswith(b"\n") and (piece := self._stream.readline(LONGEST_LINE)):
                self.bytes_read += len(piece)
            self._last += 1
            self._record += line
            yield line.decode("utf-8", "surrogateescape")

    def record(self) -> Line:
        """The lines since the last record, without values; with a violation if they are too long or not UTF-8."""
        data = bytes(self._record[:LONGEST_LINE]).rstrip(b"\r\n")
        text = data.decode("utf-8", "backslashreplace")
        violations: tuple[Violation, ...] = ()
        if self.is_too_long:
            violations = (Violation("line", "too-long", f"Must have at most {LONGEST_LINE} bytes."),)
        elif text.encode() != data:
            violations = (Violation("line", "invalid-utf-8", "Must be UTF-8."),)
        line = Line(self._first, self._last, text, {}, violations)
        self._first = self._last + 1
        self._record.clear()
        return line


def read_lines(source: Source, form: Format, *, ignore_unknown: bool) -> Iterator[Line]:
    """The record of each user; blank lines are skipped.

    Raises:
        Failure: the first line of a CSV file does not name the columns that are needed, or names others; or the file is
            not CSV from some line on, or a record is too long there: where the next one begins would be a guess, and
            what a user has typed into a cell could become another user.
    """
    read: Callable[[Source, bool], Iterator[Line]] = _read_csv if form is Format.CSV else _read_ndjson
    return read(source, ignore_unknown)


def _read_csv(source: Source, ignore_unknown: bool) -> Iterator[Line]:
    records = _csv_records(source)
    columns = _columns(*next(records, (source.record(), [])), ignore_unknown)
    for line, cells in records:
        if line.violations:
            yield line
        elif len(cells) == len(columns):
            yield replace(line, values=_values(dict(zip(columns, cells, strict=True))))
        elif cells:
            flaw = Violation("line", "wrong-number-of-cells", f"Must have {len(columns)} cells.")
            yield replace(line, violations=(flaw,))


def _csv_records(source: Source) -> Iterator[tuple[Line, list[str]]]:
    def lines() -> Iterator[str]:
        for line in source.lines():
            # Or quotation marks that are not closed would have csv read the whole file as one cell.
            if source.is_too_long:
                raise csv.Error(f"more than {LONGEST_LINE} bytes")
            yield line

    try:
        for cells in csv.reader(lines(), strict=True):
            yield source.record(), cells
    except csv.Error as error:
        line = source.record()
        first, last = line.number, line.last
        raise Failure(
            f"lines {first} to {last} are malformed CSV ({error}); nothing from line {first} on was read"
        ) from None


def _values(cells: Mapping[str, str]) -> Mapping[str, Any]:
    values: dict[str, Any] = {name: original(cell) for name, cell in cells.items() if cell and name in KNOWN}
    if re.fullmatch(r"[0-9]{1,9}", values.get("age", ""), re.ASCII):
        values["age"] = int(values["age"])
    return values


def _columns(line: Line, columns: Sequence[str], ignore_unknown: bool) -> Sequence[str]:
    for flaw in line.violations:
        raise Failure(f"the first line cannot be read: {flaw.message}")
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        raise Failure(f"the first line has to name the columns; it lacks {', '.join(missing)}")
    if len(set(columns)) < len(columns):
        raise Failure("the first line names a column twice")
    unknown = [name for name in columns if name not in KNOWN]
    if unknown and not ignore_unknown:
        raise Failure(f"there are columns that a user does not have: {_told(unknown)}; see --ignore-unknown")
    return columns


def _told(names: Sequence[str]) -> str:
    """Names as they came, quoted, as far as they are worth telling."""
    return ", ".join(ascii(name[:40]) for name in names[:5]) + (", ..." if len(names) > 5 else "")  # noqa: PLR2004


def _read_ndjson(source: Source, ignore_unknown: bool) -> Iterator[Line]:
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
    unknown = [] if ignore_unknown else [name for name in found if name not in KNOWN]
    if unknown:
        return {}, (Violation("line", "unknown-member", "Must have no members that a user does not have."),)
    return {name: found[name] for name in KNOWN if found.get(name) is not None}, ()
