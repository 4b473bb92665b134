"""Reads users from CSV (RFC 4180) and NDJSON: their syntax and types. The rules are the domain's."""

import csv
import re
from codecs import BOM_UTF8
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import IO, Any, Never
from uuid import UUID

from usersvc.application.user_import import ImportRow, parse_password_hash
from usersvc.cli.output import Failure
from usersvc.cli.user_files import CSV, unescape
from usersvc.domain.errors import ValidationFailed, Violation, collect
from usersvc.domain.user import User
from usersvc.strict_json import InvalidJson, loads

MAX_RECORD_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class Record:
    """The record of a user: one line, or several if a quoted cell has line breaks."""

    first: int
    last: int
    """The numbers of its first and last line; the first of the file is 1."""
    text: str = field(repr=False)
    row: ImportRow | ValidationFailed


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
            Failure: the record is too long: ``csv`` would read all that follows an unclosed quotation mark.
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

    def record(self, load: Callable[[], ImportRow]) -> Record:
        """The record, with the result of ``load`` or its ``ValidationFailed``."""
        data = self._record.rstrip(b"\r\n")
        text = data.decode("utf-8", "backslashreplace")
        row: ImportRow | ValidationFailed
        try:
            row = load() if text.encode() == data else _invalid("invalid-utf-8", "Must be UTF-8.")
        except ValidationFailed as error:
            row = error
        record = Record(self._first, self._last, text, row)
        self.skip()
        return record

    def skip(self) -> None:
        """Begin the next record."""
        self._first = self._last + 1
        self._record.clear()

    def failure(self, reason: str) -> Failure:
        """The failure to read the record."""
        where = line_numbers(self._first, self._last)
        return Failure(f"{where} cannot be read: {reason}; nothing from line {self._first} on was imported")


def line_numbers(first: int, last: int) -> str:
    """The lines of a record, for messages."""
    return f"line {first}" if first == last else f"lines {first} to {last}"


def read_records(source: Source, form: str, *, ignore_unknown: bool) -> Iterator[Record]:
    """The records; blank lines are skipped.

    Raises:
        Failure: a CSV file lacks a column or has an unknown one; or the CSV is malformed, or a record is too long:
            where the next one begins would be a guess, so text inside a cell could be imported as another user.
    """
    load: Callable[[Any], ImportRow] = partial(_load_json, ignore_unknown)
    rows: Iterator[Any] = (line.strip(" \t\r\n") for line in source.lines())
    try:
        if form == CSV:
            rows = csv.reader(source.lines(), strict=True)
            columns = next(rows, [])
            _check_columns(columns, ignore_unknown)
            load = partial(_load_cells, columns)
            source.skip()
        for row in rows:
            if row:
                yield source.record(partial(load, row))
            else:
                source.skip()
    except csv.Error as error:
        raise source.failure(str(error)) from None


def _check_columns(columns: Sequence[str], ignore_unknown: bool) -> None:
    missing = [name for name in REQUIRED if name not in columns]
    if missing:
        raise Failure(f"the first line must name the columns; missing: {', '.join(missing)}")
    if len(set(columns)) < len(columns):
        raise Failure("the first line names a column twice")
    unknown = [name for name in columns if name not in FIELDS]
    if unknown and not ignore_unknown:
        raise Failure(f"unknown columns: {', '.join(map(repr, unknown))}; see --ignore-unknown")


def _load_cells(columns: Sequence[str], cells: Sequence[str]) -> ImportRow:
    if len(cells) != len(columns):
        return _invalid("wrong-number-of-cells", f"Must have {len(columns)} cells.")
    values: dict[str, Any] = {name: unescape(cell) for name, cell in zip(columns, cells, strict=True) if cell}
    if re.fullmatch(r"[0-9]{1,9}", values.get("age", "")):
        values["age"] = int(values["age"])
    return load_row(values)


def _load_json(ignore_unknown: bool, line: str) -> ImportRow:
    try:
        values = loads(line.encode())
    except InvalidJson:
        values = None
    if not isinstance(values, dict):
        return _invalid("malformed-json", "Must be one JSON object, in strict JSON.")
    if not ignore_unknown and not values.keys() <= FIELDS.keys():
        return _invalid("unknown-member", "Must not have members that are not fields of a user.")
    return load_row(values)


def _invalid(code: str, message: str) -> Never:
    raise ValidationFailed([Violation("line", code, message)])


def load_row(values: Mapping[str, Any]) -> ImportRow:
    """Convert values by field; null is as good as missing.

    Raises:
        ValidationFailed: a value is missing or of the wrong type; also has the rules that the other values break.
    """
    parsed: dict[str, Any] = {}
    violations: list[Violation] = []
    for name, (kind, parse, code, message) in FIELDS.items():
        value = values.get(name)
        if value is None:
            if name in REQUIRED:
                violations.append(Violation(name, "required", "Must be given."))
            continue
        with suppress(ValueError, OverflowError):
            # By its exact type, as True would pass for an integer.
            if type(value) is kind:
                parsed[name] = parse(value)
        if name not in parsed:
            violations.append(Violation(name, code, message))
    if violations:
        violations += User.violations(email=parsed.get("email"), age=parsed.get("age"))
        if "password_hash" in parsed:
            with collect(violations):
                parse_password_hash(parsed["password_hash"])
        raise ValidationFailed(violations)
    return ImportRow(**parsed)


def _parse_id(text: str) -> UUID:
    user_id = UUID(text)
    # UUID() also accepts braces, missing hyphens and digits of other scripts.
    if str(user_id) != text.lower():
        raise ValueError
    return user_id


def _parse_time(text: str) -> datetime:
    moment = datetime.fromisoformat(text.upper())
    if moment.tzinfo is None:
        raise ValueError
    return moment.astimezone(UTC)


REQUIRED = ("email", "age", "password_hash")

FIELDS: dict[str, tuple[type, Callable[[Any], Any], str, str]] = {
    "email": (str, str, "wrong-type", "Must be text."),
    "age": (int, int, "wrong-type", "Must be a whole number."),
    "password_hash": (str, str, "wrong-type", "Must be text."),
    "id": (str, _parse_id, "invalid-uuid", "Must be a UUID."),
    "registered_at": (str, _parse_time, "invalid-time", "Must be an RFC 3339 time."),
}
"""For each field: the type of its value, what converts it, and the code and message if that fails."""
