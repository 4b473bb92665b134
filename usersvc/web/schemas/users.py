"""The shape of JSON and of queries, and nothing about rules: those are read from the domain, for the documentation.

An error message of these fields is a list of (code, text) pairs, so that a client gets a stable code.
"""

import base64
import binascii
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from marshmallow import EXCLUDE, INCLUDE, RAISE, Schema, ValidationError, fields, validates_schema

from usersvc.application.read_models import Order, UserView
from usersvc.domain.errors import ValidationFailed, Violation
from usersvc.domain.user import Age, EmailAddress, Password
from usersvc.web.problems import PROBLEMS

DEFAULT_LIMIT, MAX_LIMIT = 50, 200
"""Users on a page."""

NO_PARAMETER = "Is not a parameter of this resource."

EXAMPLE_USER: UserView = {
    "id": "01936f3c-5e1a-7b3c-9d2e-4f5a6b7c8d9e",
    "email": "alice@example.com",
    "age": 30,
    "registered_at": "2026-01-31T09:30:00.123456Z",
}


def _flaw(code: str, message: str) -> Any:
    # Typed Any since marshmallow carries any object as a message, but declares only text.
    return [(code, message)]


def violations_in(messages: Any, field: str = "body") -> Iterable[Violation]:
    """Flatten what marshmallow collected under field names into violations."""
    if isinstance(messages, Mapping):
        for name, inner in messages.items():
            for violation in violations_in(inner, field if name == "_schema" else shown(str(name))):
                # marshmallow files what is wrong with the whole under a name that a member may have as well.
                unknown = name == "_schema" and violation.code == "unknown-field"
                yield replace(violation, field=name) if unknown else violation
    elif isinstance(messages, tuple):
        yield Violation(field, *messages)
    else:
        for message in messages:
            yield from violations_in(message, field)


def shown(name: str) -> str:
    """A member name of the client's, fit for an answer: bounded, and without halves of surrogate pairs."""
    return name[:64].encode("utf-8", "backslashreplace").decode()


_COMMON = {"required": _flaw("required", "Is missing."), "null": _flaw("wrong-type", "Must not be null.")}


class Text(fields.String):
    """A JSON string."""

    default_error_messages = {**_COMMON, "invalid": _flaw("wrong-type", "Must be a string.")}


class WholeNumber(fields.Integer):
    """A JSON integer: not a boolean, not a string, not a number with a fraction or an exponent."""

    default_error_messages = {**_COMMON, "invalid": _flaw("wrong-type", "Must be an integer.")}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> int:
        if type(value) is not int:
            raise self.make_error("invalid")
        return value


class RegistrationSchema(Schema):
    """What ``POST /register`` takes."""

    class Meta:
        """Nothing else is accepted."""

        unknown = RAISE

    error_messages = {
        "unknown": _flaw("unknown-field", "Is not a field of this request."),
        "type": _flaw("wrong-type", "Must be a JSON object."),
    }

    email = Text(
        required=True,
        metadata={
            "format": "email",
            "maxLength": EmailAddress.MAX_OCTETS,
            "description": "An address by the syntax of RFC 5321, 5322 and 6531; at most "
            f"{EmailAddress.MAX_OCTETS} octets in UTF-8. Two spellings of one mailbox are one user.",
            "example": EXAMPLE_USER["email"],
        },
    )
    password = Text(
        required=True,
        load_only=True,
        metadata={
            "format": "password",
            "minLength": Password.MIN_LENGTH,
            "maxLength": Password.MAX_LENGTH,
            "description": "Counted in code points after Unicode normalization (NFC); any character is allowed. Not a "
            "commonly used password, not the email address nor the part of it before the @.",
            "example": "correct horse battery staple",
        },
    )
    age = WholeNumber(
        required=True,
        metadata={
            "minimum": Age.MIN,
            "maximum": Age.MAX,
            "description": "In whole years.",
            "example": EXAMPLE_USER["age"],
        },
    )


IDEMPOTENCY_KEY = "Idempotency-Key"


class KeyText(fields.Field[Any]):
    """An idempotency key: it comes once."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> str:
        if isinstance(value, list):
            raise ValidationError(_flaw("repeated", "Must come once."))
        if not re.fullmatch(r"[!-~]{1,255}", value):
            raise ValidationError(_flaw("invalid-key", "Must have 1 to 255 characters of visible ASCII."))
        return str(value)


class RegistrationHeadersSchema(Schema):
    """The headers that ``POST /register`` heeds."""

    class Meta:
        """There are others."""

        unknown = EXCLUDE

    key = KeyText(
        data_key=IDEMPOTENCY_KEY,
        metadata={
            "type": "string",
            "minLength": 1,
            "maxLength": 255,
            "pattern": "^[!-~]{1,255}$",
            "description": "What you call this registration, best a fresh UUID: a repeat under the same key within 24 "
            "hours answers what the first one did, and registers nobody twice.",
            # Without an example, which Swagger UI would send for everybody.
        },
    )


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a page begins: behind a position, in an order. Opaque to clients."""

    order: Order
    after: int

    def encode(self) -> str:
        """The form that stands in links."""
        return base64.urlsafe_b64encode(f"{self.order}.{self.after}".encode()).rstrip(b"=").decode()

    @classmethod
    def decode(cls, text: str) -> "Cursor | None":
        """Read back what ``encode`` gave; None for anything else."""
        try:
            raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True).decode("ascii")
        except (binascii.Error, ValueError):
            return None
        # 18 digits keep it within the 64 bits of a database's integer.
        match = re.fullmatch(r"(asc|desc)\.([1-9][0-9]{0,17})", raw)
        cursor = match and cls(Order(match[1]), int(match[2]))
        return cursor if cursor and cursor.encode() == text else None


NEXT_EXAMPLE = f"/users?limit={DEFAULT_LIMIT}&order=asc&cursor={Cursor(Order.ASC, 50).encode()}"


class Parameter(fields.Field[Any]):
    """A query parameter: it comes once, as text."""

    def deserialize(self, value: Any, attr: str | None = None, data: Any = None, **kwargs: Any) -> Any:
        """Refuse a list of values; the rest is up to the kind of parameter."""
        if isinstance(value, list):
            raise ValidationError(_flaw("repeated", "Must come once."))
        return super().deserialize(value, attr, data, **kwargs)


class CursorText(Parameter):
    """A cursor from ``links.next``."""

    default_error_messages = {"invalid": _flaw("invalid-cursor", "Must be taken from links.next of a page.")}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> Cursor:
        cursor = Cursor.decode(value)
        if cursor is None:
            raise self.make_error("invalid")
        return cursor


class MailboxText(Parameter):
    """An email address that names a mailbox."""

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> EmailAddress:
        try:
            return EmailAddress(value)
        except ValidationFailed as refused:
            raise ValidationError([(flaw.code, flaw.message) for flaw in refused.violations]) from None


class PageLimit(Parameter, fields.Integer):
    """How many users a page has: ASCII digits, nothing else that Python's int() would take."""

    default_error_messages = {"invalid": _flaw("out-of-range", f"Must be a whole number from 1 to {MAX_LIMIT}.")}

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
            raise ValidationError(_flaw("not-a-choice", "Must be asc or desc.")) from None


class UsersQuerySchema(Schema):
    """What ``GET /users`` can be asked."""

    class Meta:
        """A misspelt parameter must not be mistaken for no parameter."""

        unknown = RAISE

    error_messages = {"unknown": _flaw("unknown-field", NO_PARAMETER)}

    limit = PageLimit(
        metadata={
            "minimum": 1,
            "maximum": MAX_LIMIT,
            "description": f"How many users there are at most: by default {DEFAULT_LIMIT} on a page, all as NDJSON.",
        },
    )
    cursor = CursorText(
        metadata={
            "type": "string",
            "description": "Where the page begins; opaque, taken from links.next. It belongs to its order.",
        },
    )
    order = OrderName(
        load_default=Order.ASC,
        metadata={
            "type": "string",
            "enum": [order.value for order in Order],
            "default": Order.ASC.value,
            "description": "By time of registration.",
        },
    )
    email = MailboxText(
        metadata={
            "type": "string",
            "format": "email",
            "maxLength": EmailAddress.MAX_OCTETS,
            "description": "Only the user of this mailbox, in any spelling.",
        },
    )

    @validates_schema
    def _cursor_belongs_to_order(self, data: dict[str, Any], **_: Any) -> None:
        if "cursor" in data and data["cursor"].order is not data["order"]:
            raise ValidationError(_flaw("invalid-cursor", "Belongs to the other order."), "cursor")


class UserSchema(Schema):
    """A user, as anybody may see one."""

    id = fields.UUID(required=True, metadata={"description": "A UUIDv7.", "example": EXAMPLE_USER["id"]})
    email = fields.String(required=True, metadata={"description": "As it was typed.", "example": EXAMPLE_USER["email"]})
    age = fields.Integer(
        required=True, metadata={"minimum": Age.MIN, "maximum": Age.MAX, "example": EXAMPLE_USER["age"]}
    )
    registered_at = fields.DateTime(
        required=True, metadata={"description": "RFC 3339, in UTC.", "example": EXAMPLE_USER["registered_at"]}
    )


class UserDocumentSchema(Schema):
    """One user."""

    data = fields.Nested(UserSchema, required=True)


class PageLinksSchema(Schema):
    """Where this page and the next one are."""

    self_ = fields.String(
        required=True,
        data_key="self",
        metadata={"format": "uri-reference", "example": f"/users?limit={DEFAULT_LIMIT}&order=asc"},
    )
    next = fields.String(
        required=True,
        allow_none=True,
        metadata={
            "format": "uri-reference",
            "description": "null on the last page.",
            "example": NEXT_EXAMPLE,
        },
    )


class UsersDocumentSchema(Schema):
    """One page of users."""

    data = fields.List(fields.Nested(UserSchema), required=True)
    links = fields.Nested(PageLinksSchema, required=True)


class StatusSchema(Schema):
    """How the service is."""

    status = fields.String(required=True, metadata={"enum": ["ok"], "example": "ok"})


class StatusDocumentSchema(Schema):
    """How the service is."""

    data = fields.Nested(StatusSchema, required=True)


class IndexSchema(Schema):
    """What this is."""

    name = fields.String(required=True, metadata={"example": "usersvc"})
    version = fields.String(required=True, metadata={"example": "0.1.0"})


class IndexLinksSchema(Schema):
    """Where everything is."""

    self_ = fields.String(required=True, data_key="self", metadata={"format": "uri-reference", "example": "/"})
    register = fields.String(required=True, metadata={"format": "uri-reference", "example": "/register"})
    users = fields.String(required=True, metadata={"format": "uri-reference", "example": "/users"})
    docs = fields.String(required=True, metadata={"format": "uri-reference", "example": "/docs"})
    openapi = fields.String(required=True, metadata={"format": "uri-reference", "example": "/openapi.json"})
    livez = fields.String(required=True, metadata={"format": "uri-reference", "example": "/livez"})
    readyz = fields.String(required=True, metadata={"format": "uri-reference", "example": "/readyz"})
    metrics = fields.String(required=True, metadata={"format": "uri-reference", "example": "/metrics"})


class IndexDocumentSchema(Schema):
    """Where to go from here."""

    data = fields.Nested(IndexSchema, required=True)
    links = fields.Nested(IndexLinksSchema, required=True)


class ProblemKindSchema(Schema):
    """What an error code means."""

    code = fields.String(required=True, metadata={"example": "email-taken"})
    status = fields.Integer(required=True, metadata={"example": 409})
    title = fields.String(required=True, metadata={"example": "Email address taken"})
    description = fields.String(
        required=True,
        metadata={"example": "A user with this mailbox is registered already, perhaps in another spelling."},
    )


class ProblemKindDocumentSchema(Schema):
    """What an error code means."""

    data = fields.Nested(ProblemKindSchema, required=True)


class OpenApiSchema(Schema):
    """An OpenAPI document, as far as it needs describing here."""

    class Meta:
        """There is more in it."""

        unknown = INCLUDE

    openapi = fields.String(required=True, metadata={"example": "3.0.3"})
    info = fields.Dict(required=True, metadata={"example": {"title": "usersvc", "version": "1"}})
    paths = fields.Dict(required=True, metadata={"example": {}})


class FieldErrorSchema(Schema):
    """One broken rule."""

    field = fields.String(
        required=True,
        metadata={"description": "The member of the body or the parameter; body for the whole.", "example": "age"},
    )
    code = fields.String(required=True, metadata={"example": "out-of-range"})
    message = fields.String(required=True, metadata={"example": f"Must be from {Age.MIN} to {Age.MAX}."})


class ProblemSchema(Schema):
    """An error (RFC 9457)."""

    type = fields.String(required=True, metadata={"format": "uri-reference"})
    title = fields.String(required=True)
    status = fields.Integer(required=True)
    detail = fields.String(required=True)
    instance = fields.String(
        required=True, metadata={"format": "uri-reference", "description": "Carries the request id."}
    )
    code = fields.String(
        required=True, metadata={"enum": sorted(PROBLEMS), "description": "Stable; explained at /problems/{code}."}
    )
    errors = fields.List(
        fields.Nested(FieldErrorSchema),
        metadata={"description": "With validation-failed: every broken rule of every field."},
    )
