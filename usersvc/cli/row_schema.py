"""The schema of a record of a user: its types. The rules are the domain's."""

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar
from uuid import UUID

from usersvc.application.password_hashes import parse_password_hash
from usersvc.application.user_import import ImportRow
from usersvc.cli.formats import REQUIRED
from usersvc.domain.errors import ValidationFailed, Violation, collect
from usersvc.domain.user import User

T = TypeVar("T")

_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]+)?([Zz]|[+-][0-9]{2}:[0-9]{2})")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE | re.ASCII)


def load_row(values: Mapping[str, Any]) -> ImportRow:
    """Convert the values of a record.

    Raises:
        ValidationFailed: a value is missing or of the wrong type; also has the rules that the other values break.
    """
    broken: list[Violation] = [
        Violation(name, "required", "Must be given.") for name in REQUIRED if values.get(name) is None
    ]

    def read(name: str, of: Callable[[Any], T], code: str, message: str) -> T | None:
        if values.get(name) is None:
            return None
        try:
            return of(values[name])
        except (TypeError, ValueError, OverflowError):
            broken.append(Violation(name, code, message))
            return None

    email = read("email", _text, "wrong-type", "Must be text.")
    age = read("age", _whole, "wrong-type", "Must be a whole number.")
    password_hash = read("password_hash", _text, "wrong-type", "Must be text.")
    user_id = read("id", _uuid, "invalid-uuid", "Must be a UUID.")
    registered_at = read("registered_at", _time, "invalid-time", "Must be an RFC 3339 time.")
    if broken or email is None or age is None or password_hash is None:
        broken += User.violations(email=email, age=age)
        if password_hash is not None:
            collect(broken, partial(parse_password_hash, password_hash))
        raise ValidationFailed(broken)
    return ImportRow(email, age, password_hash, user_id, registered_at)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _whole(value: Any) -> int:
    # By its type, as True would pass.
    if type(value) is not int:
        raise TypeError
    return value


def _uuid(value: Any) -> UUID:
    # UUID() also takes braces, missing hyphens and digits of other scripts.
    if not _UUID.fullmatch(_text(value)):
        raise ValueError
    return UUID(value)


def _time(value: Any) -> datetime:
    # fromisoformat() also takes weeks, times without a zone, and more.
    if not _TIME.fullmatch(_text(value)):
        raise ValueError
    return datetime.fromisoformat(value.upper()).astimezone(UTC)
