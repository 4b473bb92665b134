"""Fields of JSON bodies and of queries, with stable error codes.

An error message of these fields is a list of (code, text) pairs.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from marshmallow import RAISE, Schema, ValidationError, fields

from usersvc.application.read_models import Order
from usersvc.domain.email_address import EmailAddress
from usersvc.domain.errors import ValidationFailed, Violation
from usersvc.web.cursor import Cursor

DEFAULT_LIMIT, MAX_LIMIT = 50, 200
"""Users on a page."""


def flaw(code: str, message: str) -> Any:
    """An error message with its code."""
    # Typed Any since marshmallow carries any object as a message, but declares only text.
    return [(code, message)]


def violations_in(messages: Any, field: str = "body") -> Iterable[Violation]:
    """Flatten the messages that marshmallow collects by field."""
    if isinstance(messages, Mapping):
        for name, inner in messages.items():
            for violation in violations_in(inner, field if name == "_schema" else shown(str(name))):
                # marshmallow uses this name for errors of the whole object, but a member may have it too.
                unknown = name == "_schema" and violation.code == "unknown-field"
                yield replace(violation, field=name) if unknown else violation
    elif isinstance(messages, tuple):
        yield Violation(field, *messages)
    else:
        for message in messages:
            yield from violations_in(message, field)


def shown(name: str) -> str:
    """A name that a client sent, fit for a response: truncated, and without lone surrogates."""
    return name[:64].encode("utf-8", "backslashreplace").decode()


_COMMON = {"required": flaw("required", "Is missing."), "null": flaw("wrong-type", "Must not be null.")}


class Text(fields.String):
    """A JSON string."""

    default_error_messages = {**_COMMON, "invalid": flaw("wrong-type", "Must be a string.")}


class WholeNumber(fields.Integer):
    """A JSON integer: not a boolean, not a string, not a number with a fraction or an exponent."""

    default_error_messages = {**_COMMON, "invalid": flaw("wrong-type", "Must be an integer.")}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> int:
        if type(value) is not int:
            raise self.make_error("invalid")
        return value


class KeyText(fields.Field[Any]):
    """An idempotency key."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> str:
        if isinstance(value, list):
            raise ValidationError(flaw("repeated", "Must not be repeated."))
        if not re.fullmatch(r"[!-~]{1,255}", value):
            raise ValidationError(flaw("invalid-key", "Must have 1 to 255 characters of visible ASCII."))
        return str(value)


class Parameter(fields.Field[Any]):
    """A query parameter, which must not be repeated."""

    def deserialize(self, value: Any, attr: str | None = None, data: Any = None, **kwargs: Any) -> Any:
        """Refuse a list of values."""
        if isinstance(value, list):
            raise ValidationError(flaw("repeated", "Must not be repeated."))
        return super().deserialize(value, attr, data, **kwargs)


class CursorText(Parameter):
    """A cursor from ``links.next``."""

    default_error_messages = {"invalid": flaw("invalid-cursor", "Must be the cursor of a links.next.")}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> Cursor:
        cursor = Cursor.decode(value)
        if cursor is None:
            raise self.make_error("invalid")
        return cursor


class MailboxText(Parameter):
    """An email address."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> EmailAddress:
        try:
            return EmailAddress(value)
        except ValidationFailed as refused:
            raise ValidationError([(flaw.code, flaw.message) for flaw in refused.violations]) from None


class PageLimit(Parameter, fields.Integer):
    """The size of a page, in ASCII digits; ``int()`` would accept more."""

    default_error_messages = {"invalid": flaw("out-of-range", f"Must be a whole number from 1 to {MAX_LIMIT}.")}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> int:
        if not re.fullmatch(r"[1-9][0-9]{0,8}", value) or int(value) > MAX_LIMIT:
            raise self.make_error("invalid")
        return int(value)


class OrderName(Parameter):
    """The name of an order."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> Order:
        try:
            return Order(value)
        except ValueError:
            raise ValidationError(flaw("not-a-choice", "Must be asc or desc.")) from None


class QuerySchema(Schema):
    """A query string; without fields, a resource that has no parameters."""

    class Meta:
        """An unknown parameter is an error: it may be a misspelt one."""

        unknown = RAISE

    error_messages = {"unknown": flaw("unknown-field", "Is not a parameter of this resource.")}
