"""Writes users as CSV (RFC 4180) or NDJSON."""

import csv
import io
import json
from collections.abc import Sequence

from usersvc.application.clock import timestamp
from usersvc.application.read_models import UserRecord
from usersvc.cli.csv_injection import escape
from usersvc.cli.formats import PUBLIC, Format


class Writer:
    """Encodes users, a batch at a time."""

    def __init__(self, form: Format, *, with_password_hashes: bool) -> None:
        self._form = form
        self._names = (*PUBLIC, "password_hash") if with_password_hashes else PUBLIC

    def head(self) -> bytes:
        """The beginning of the file."""
        return _csv([self._names]) if self._form is Format.CSV else b""

    def body(self, records: Sequence[UserRecord]) -> bytes:
        """A batch of users."""
        rows = [_values(record) for record in records]
        if self._form is Format.CSV:
            return _csv([[escape(str(row[name])) for name in self._names] for row in rows])
        lines = ({name: row[name] for name in self._names} for row in rows)
        return b"".join(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n" for line in lines)


def _values(record: UserRecord) -> dict[str, str | int]:
    return {
        "id": str(record.id),
        "email": record.email,
        "age": record.age,
        "registered_at": timestamp(record.registered_at),
        "password_hash": record.password_hash,
    }


def _csv(rows: Sequence[Sequence[str]]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(rows)
    return text.getvalue().encode()
