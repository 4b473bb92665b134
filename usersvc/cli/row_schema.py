"""The schema of a record of a user: its types. The rules are the domain's."""

from collections.abc import Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any
from uuid import UUID

from usersvc.application.password_hashes import parse_password_hash
from usersvc.application.user_import import ImportRow
from usersvc.domain.errors import ValidationFailed, Violation, collect
from usersvc.domain.user import User


def load_row(values: Mapping[str, Any]) -> ImportRow:
    """Convert the values of a record.

    Raises:
        ValidationFailed: a value is missing or of the wrong type; also has the rules that the other values break.
    """
    parsed: dict[str, Any] = {}
    violations: list[Violation] = []
    for name, (parse, code, message) in FIELDS.items():
        value = values.get(name)
        if value is None:
            if name in REQUIRED:
                violations.append(Violation(name, "required", "Must be given."))
            continue
        try:
            parsed[name] = parse(value)
        except (TypeError, ValueError, OverflowError):
            violations.append(Violation(name, code, message))
    if violations:
        violations += User.violations(email=parsed.get("email"), age=parsed.get("age"))
        if "password_hash" in parsed:
            collect(violations, partial(parse_password_hash, parsed["password_hash"]))
        raise ValidationFailed(violations)
    return ImportRow(**parsed)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _integer(value: Any) -> int:
    # By its type, as True would pass.
    if type(value) is not int:
        raise TypeError
    return value


def _uuid(value: Any) -> UUID:
    return UUID(_text(value))


def _time(value: Any) -> datetime:
    moment = datetime.fromisoformat(_text(value).upper())
    if moment.tzinfo is None:
        raise ValueError
    return moment.astimezone(UTC)


REQUIRED = ("email", "age", "password_hash")

FIELDS = {
    "email": (_text, "wrong-type", "Must be text."),
    "age": (_integer, "wrong-type", "Must be a whole number."),
    "password_hash": (_text, "wrong-type", "Must be text."),
    "id": (_uuid, "invalid-uuid", "Must be a UUID."),
    "registered_at": (_time, "invalid-time", "Must be an RFC 3339 time."),
}
"""For each field: what parses its value, and the code and message if that fails."""
