"""Reads users from CSV (RFC 4180) and NDJSON: what a line holds, or why it cannot be understood."""

import csv
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from usersvc.commands.formats import OPTIONAL, REQUIRED, Format
from usersvc.commands.formulas import original
from usersvc.commands.outcome import Failure
from usersvc.domain.errors import Violation
from usersvc.web.problems import MalformedJson
from usersvc.web.strict_json import loads

LONGEST_LINE = 64 * 1024
"""Bytes; a line of a user has a few hundred."""

KNOWN = (*REQUIRED, *OPTIONAL)


@dataclass(frozen=True, slots=True)
class Line:
    """What stands for one user: one line, or several when a cell in quotation marks has line breaks."""

    number: int
    """Of the first of its lines; the first of the file is 1."""
    text: str = field(repr=False)
    """As it was."""
    values: Mapping[str, Any] = field(repr=False)
    """By name; what is empty or null is left out."""
    violations: tuple[Violation, ...] = ()
    """Why it cannot be understood; then there are no values."""


class Source:
    """The lines of a file in UTF-8, one after the other, and how far it was read."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._kept: list[str] = []
        self._last = 0
        self._first = 1
        self._is_whole = True
        self.bytes_read = 0

    def begin(self) -> None:
        """What is read from here on belongs together."""
        self._kept, self._first, self._is_whole = [], self._last + 1, True

    def line(self, values: Mapping[str, Any], *violations: Violation) -> Line:
        """What was read since ``begin``, with what it holds; nothing is to be made of it when it was no text."""
        text = "".join(self._kept).rstrip("\r\n")
        readable = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
        if not self._is_whole:
            violations = (Violation("line", "too-long", f"Must have at most {LONGEST_LINE} bytes."),)
        elif readable != text:
            violations = (Violation("line", "invalid-utf-8", "Must be UTF-8."),)
        return Line(self._first, readable, {} if violations else values, violations)

    def __iter__(self) -> Iterator[str]:
        """The lines, with their ends; of one that is too long, the beginning."""
        return self

    def __next__(self) -> str:
        """The next line."""
        found = self._stream.readline(LONGEST_LINE)
        if not found:
            raise StopIteration
        self._last += 1
        self.bytes_read += len(found)
        if len(found) == LONGEST_LINE and not found.endswith(b"\n"):
            self._is_whole = False
            while (rest := self._stream.readline(LONGEST_LINE)) and not rest.endswith(b"\n"):
                self.bytes_read += len(rest)
            self.bytes_read += len(rest)
        # The mark at the beginning that some programs write is no part of the text.
        text = found.decode("utf-8-sig" if self._last == 1 else "utf-8", "surrogateescape")
        self._kept.append(text)
        return text


def read_lines(source: Source, form: Format, *, ignore_unknown: bool) -> Iterator[Line]:
    """Everything that stands for a user; blank lines do not.

    Raises:
        Failure: the first line of a CSV file does not name the columns that are needed, or names others.
    """
    read: Callable[[Source, bool], Iterator[Line]] = _read_csv if form is Format.CSV else _read_ndjson
    return read(source, ignore_unknown)


def _read_csv(source: Source, ignore_unknown: bool) -> Iterator[Line]:
    reader = csv.reader(source, strict=True)
    columns = _columns(reader, ignore_unknown)
    while True:
        source.begin()
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
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


def _columns(reader: Iterator[list[str]], ignore_unknown: bool) -> Sequence[str]:
    try:
        columns = next(reader, [])
    except csv.Error:
        columns = []
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
    source.begin()
    for text in source:
        if text.strip():
            values, violations = _members(text, ignore_unknown)
            yield source.line(values, *violations)
        source.begin()


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
