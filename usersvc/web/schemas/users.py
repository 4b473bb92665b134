"""Schemas of users: the shape of JSON and of queries, documented with the limits of the domain."""

from typing import Any

from marshmallow import EXCLUDE, RAISE, Schema, ValidationError, fields, validates_schema

from usersvc.application.read_models import Order, UserView
from usersvc.domain.email_address import EmailAddress
from usersvc.domain.password import Password
from usersvc.domain.user import Age
from usersvc.web.cursor import Cursor
from usersvc.web.schemas.fields import (
    DEFAULT_LIMIT,
    MAX_LIMIT,
    CursorText,
    KeyText,
    MailboxText,
    OrderName,
    PageLimit,
    QuerySchema,
    Text,
    WholeNumber,
    flaw,
)

EXAMPLE_USER: UserView = {
    "id": "01936f3c-5e1a-7b3c-9d2e-4f5a6b7c8d9e",
    "email": "alice@example.com",
    "age": 30,
    "registered_at": "2026-01-31T09:30:00.123456Z",
}

NEXT_EXAMPLE = f"/users?limit={DEFAULT_LIMIT}&order=asc&cursor={Cursor(Order.ASC, 50).encode()}"


class RegistrationSchema(Schema):
    """The body of ``POST /register``."""

    class Meta:
        """No other members are accepted."""

        unknown = RAISE

    error_messages = {
        "unknown": flaw("unknown-field", "Is not a field of this request."),
        "type": flaw("wrong-type", "Must be a JSON object."),
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


class RegistrationHeadersSchema(Schema):
    """The headers of ``POST /register`` that are used."""

    class Meta:
        """Other headers are ignored."""

        unknown = EXCLUDE

    key = KeyText(
        data_key="Idempotency-Key",
        metadata={
            "type": "string",
            "minLength": 1,
            "maxLength": 255,
            "pattern": "^[!-~]{1,255}$",
            "description": "Identifies this registration; use a fresh UUID. A repeat with the same key within 24 hours "
            "returns the first response and registers no second user.",
            # Without an example, which Swagger UI would send with every request.
        },
    )


class UsersQuerySchema(QuerySchema):
    """The query of ``GET /users``."""

    limit = PageLimit(
        metadata={
            "minimum": 1,
            "maximum": MAX_LIMIT,
            "description": f"The maximum number of users: by default {DEFAULT_LIMIT} on a page, all as NDJSON.",
        },
    )
    cursor = CursorText(
        metadata={
            "type": "string",
            "description": "Where the page starts; opaque, from links.next. Valid with the order of that page only.",
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
            "description": "Only the user with this mailbox, in any spelling.",
        },
    )

    @validates_schema
    def _cursor_belongs_to_order(self, data: dict[str, Any], **_: Any) -> None:
        if "cursor" in data and data["cursor"].order is not data["order"]:
            raise ValidationError(flaw("invalid-cursor", "Belongs to the other order."), "cursor")


class UserSchema(Schema):
    """A user, for display."""

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
    """Links to this page and to the next one."""

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
