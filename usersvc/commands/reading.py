"""Reads users from CSV (RFC 4180) and NDJSON: what a line holds, or why it cannot be understood."""

import csv
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, BinaryIO

from usersvc.commands.formats import OPTIONAL, REQUIRED, Format
from usersvc.commands.formulas import original
from usersvc.commands.outcome import Failure
from usersvc.domain.errors import Violation
from usersvc.web.problems import MalformedJson
from usersvc.web.strict_json import loads

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
    """A file in UTF-8, read line after line, and how far it was read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._kept = bytearray()
        self._first = self._last = self._next = 1
        self.bytes_read = 0
        self.is_whole = True
        """Whether all of what was taken last was kept."""

    def take(self, goes_on: Callable[[bytes], bool]) -> str | None:
        """Read the next line, and those behind it that belong to it.

        Args:
            goes_on: shown all of it, in pieces; tells whether a line that ends with this piece is not the last.

        Returns:
            At most the first ``LONGEST_LINE`` bytes; None when there is no more line.
        """
        self._kept.clear()
        self._first, size = self._next, 0
        while piece := self._stream.readline(LONGEST_LINE):
            is_first = self.bytes_read == 0
            self.bytes_read += len(piece)
            if is_first:
                # The mark that some programs write is no part of the text.
                piece = piece.removeprefix(BOM_UTF8)
            size += len(piece)
            self._kept += piece[: LONGEST_LINE - len(self._kept)]
            is_line_end = piece.endswith(b"\n")
            self._last = self._next
            self._next += is_line_end
            if not goes_on(piece) and is_line_end:
                break
        self.is_whole = size <= LONGEST_LINE
        return self._kept.decode("utf-8", "surrogateescape") if size else None

    def line(self, values: Mapping[str, Any], *violations: Violation) -> Line:
        """What was taken last, with what it holds; nothing is to be made of it when it was too long or no text."""
        text = self._kept.decode("utf-8", "surrogateescape").rstrip("\r\n")
        readable = self._kept.decode("utf-8", "backslashreplace").rstrip("\r\n")
        if not self.is_whole:
            violations = violations or (Violation("line", "too-long", f"Must have at most {LONGEST_LINE} bytes."),)
        elif readable != text:
            violations = (Violation("line", "invalid-utf-8", "Must be UTF-8."),)
        return Line(self._first, self._last, readable, {} if violations else values, violations)


class _Place(Enum):
    """Where in a cell something stands; the names are those of RFC 4180's parts."""

    BEGIN = auto()
    NON_ESCAPED = auto()
    ESCAPED = auto()
    """In quotation marks."""
    CLOSED = auto()
    """Behind what closes them, if it is not the first half of a pair."""


class _Cells:
    """Follows cells far enough to know which line ends are within one, by the same rules as ``csv``.

    ``csv`` itself would take up again behind whatever it stumbles over, also in the midst of a cell: what somebody
    else has typed there would become users.
    """

    _PARTS = re.compile(rb'["\n,]|[^"\n,]+')

    def __init__(self) -> None:
        self._place = _Place.BEGIN

    @property
    def is_open(self) -> bool:
        """Whether quotation marks are still to be closed."""
        return self._place is _Place.ESCAPED

    def go_on(self, piece: bytes) -> bool:
        """Whether the cell that this piece ends in goes on behind a line's end."""
        # Almost all have none.
        for part in self._PARTS.findall(piece) if b'"' in piece else [piece[-1:]]:
            if self.is_open:
                if part == b'"':
                    self._place = _Place.CLOSED
            elif part == b'"' and self._place is not _Place.NON_ESCAPED:
                self._place = _Place.ESCAPED
            else:
                self._place = _Place.BEGIN if part in {b",", b"\n"} else _Place.NON_ESCAPED
        return self.is_open


def read_lines(source: Source, form: Format, *, ignore_unknown: bool) -> Iterator[Line]:
    """Everything that stands for a user; blank lines do not.

    Raises:
        Failure: the first line of a CSV file does not name the columns that are needed, or names others; or quotation
            marks are never closed, of which the line before tells already.
    """
    read: Callable[[Source, bool], Iterator[Line]] = _read_csv if form is Format.CSV else _read_ndjson
    return read(source, ignore_unknown)


def _read_csv(source: Source, ignore_unknown: bool) -> Iterator[Line]:
    columns = _columns(source, ignore_unknown)
    while True:
        quotation = _Cells()
        text = source.take(quotation.go_on)
        if text is None:
            return
        if quotation.is_open:
            unclosed = source.line({}, Violation("line", "unclosed-quotation", "Must close its quotation marks."))
            yield unclosed
            raise _unclosed(unclosed)
        if not source.is_whole:
            yield source.line({})
            continue
        cells = _cells(text)
        if cells is None:
            yield source.line({}, Violation("line", "malformed-csv", "Must be CSV as RFC 4180 has it."))
            continue
        if not cells:
            continue
        if len(cells) != len(columns):
            yield source.line({}, Violation("line", "wrong-number-of-cells", f"Must have {len(columns)} cells."))
            continue
        values: dict[str, Any] = {
            name: original(cell) for name, cell in zip(columns, cells, strict=True) if cell and name in KNOWN
        }
        if re.fullmatch(r"[0-9]{1,9}", values.get("age", ""), re.ASCII):
            values["age"] = int(values["age"])
        yield source.line(values)


def _cells(text: str) -> Sequence[str] | None:
    """What one record holds; None when it is malformed."""
    try:
        return next(csv.reader([text], strict=True))
    except csv.Error:
        return None


def _unclosed(line: Line) -> Failure:
    # To guess where the next user begins would be to take whatever stands in a cell for users.
    return Failure(f"line {line.number} opens quotation marks that nothing closes: nobody behind them was read")


def _columns(source: Source, ignore_unknown: bool) -> Sequence[str]:
    quotation = _Cells()
    columns = _cells(source.take(quotation.go_on) or "\n") or []
    line = source.line({})
    if quotation.is_open:
        raise _unclosed(line)
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
    while (text := source.take(lambda _: False)) is not None:
        if text.strip():
            values, violations = _members(text, ignore_unknown) if source.is_whole else ({}, ())
            yield source.line(values, *violations)


def _members(text: str, ignore_unknown: bool) -> tuple[Mapping[str, Any], Sequence[Violation]]:
    try:
        found = loads(text.encode("utf-8", "surrogateescape"))
    except MalformedJson:
        found = None
    if not isinstance(found, dict):
        return {}, [Violation("line", "malformed-json", "Must be one JSON object, in strict JSON.")]
    unknown = [] if ignore_unknown else [name for name in found if name not in KNOWN]
    if unknown:
        return {}, [Violation("line", "unknown-member", "Must have no members that a user does not have.")]
    return {name: found[name] for name in KNOWN if found.get(name) is not None}, []
