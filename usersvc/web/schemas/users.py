"""Schemas of users: the shape of JSON and of queries, documented with the limits of the domain."""

import re
from typing import Any

from marshmallow import Schema, ValidationError, fields, validates_schema

from usersvc.application.read_models import Order, UserView
from usersvc.domain.email_address import EmailAddress
from usersvc.domain.password import Password
from usersvc.domain.user import Age
from usersvc.web.cursor import Cursor
from usersvc.web.schemas.fields import Parameter, QuerySchema, Text, WholeNumber, document, flaw, link, member

DEFAULT_LIMIT, MAX_LIMIT = 50, 200
"""Users on a page."""

EXAMPLE_USER: UserView = {
    "id": "01936f3c-5e1a-7b3c-9d2e-4f5a6b7c8d9e",
    "email": "alice@example.com",
    "age": 30,
    "registered_at": "2026-01-31T09:30:00.123456Z",
}

NEXT_EXAMPLE = f"/users?limit={DEFAULT_LIMIT}&order=asc&cursor={Cursor(Order.ASC, 50).encode()}"


class RegistrationSchema(Schema):
    """The body of ``POST /register``."""

    error_messages = {
        "unknown": flaw("unknown-field", "Is not a field of this request."),
        "type": flaw("wrong-type", "Must be a JSON object."),
    }

    email = member(
        Text,
        EXAMPLE_USER["email"],
        format="email",
        maxLength=EmailAddress.MAX_OCTETS,
        description="RFC 5321, 5322 and 6531, in octets of UTF-8. Two spellings of one mailbox are one user.",
    )
    password = member(
        Text,
        "correct horse battery staple",
        format="password",
        writeOnly=True,
        minLength=Password.MIN_LENGTH,
        maxLength=Password.MAX_LENGTH,
        description="Counted in code points after Unicode normalization (NFC); any character is allowed. Not a "
        "commonly used password, not the email address nor the part of it before the @.",
    )
    age = member(WholeNumber, EXAMPLE_USER["age"], minimum=Age.MIN, maximum=Age.MAX, description="In whole years.")


def _key(text: str) -> str:
    if not re.fullmatch(r"[!-~]{1,255}", text):
        raise ValueError
    return text


class RegistrationHeadersSchema(Schema):
    """The headers of ``POST /register`` that are used."""

    key = Parameter(
        _key,
        flaw("invalid-key", "Must have 1 to 255 characters of visible ASCII."),
        data_key="Idempotency-Key",
        pattern="^[!-~]{1,255}$",
        description="Identifies this registration; use a fresh UUID. A repeat with the same key within 24 hours "
        "returns the first response and registers no second user.",
        # Without an example, which Swagger UI would send with every request.
    )


def _limit(text: str) -> int:
    # int() would accept more than ASCII digits.
    if not re.fullmatch(r"[1-9][0-9]{0,8}", text) or int(text) > MAX_LIMIT:
        raise ValueError
    return int(text)


class UsersQuerySchema(QuerySchema):
    """The query of ``GET /users``."""

    limit = Parameter(
        _limit,
        flaw("out-of-range", f"Must be a whole number from 1 to {MAX_LIMIT}."),
        type="integer",
        minimum=1,
        maximum=MAX_LIMIT,
        description=f"The maximum number of users: by default {DEFAULT_LIMIT} on a page, all as NDJSON.",
    )
    cursor = Parameter(
        Cursor.decode,
        flaw("invalid-cursor", "Must be the cursor of a links.next."),
        description="Where the page starts; opaque, from links.next. Valid with the order of that page only.",
    )
    order = Parameter(
        Order,
        flaw("not-a-choice", "Must be asc or desc."),
        load_default=Order.ASC,
        enum=[order.value for order in Order],
        default=Order.ASC.value,
        description="By time of registration.",
    )
    email = Parameter(
        EmailAddress,
        format="email",
        maxLength=EmailAddress.MAX_OCTETS,
        description="Only the user with this mailbox, in any spelling.",
    )

    @validates_schema
    def _cursor_belongs_to_order(self, data: dict[str, Any], **_: Any) -> None:
        if "cursor" in data and data["cursor"].order is not data["order"]:
            raise ValidationError(flaw("invalid-cursor", "Belongs to the other order."), "cursor")


UserSchema = document(
    "User",
    id=member(fields.UUID, EXAMPLE_USER["id"], description="A UUIDv7."),
    email=member(fields.String, EXAMPLE_USER["email"], description="As it was typed."),
    age=member(fields.Integer, EXAMPLE_USER["age"], minimum=Age.MIN, maximum=Age.MAX),
    registered_at=member(fields.DateTime, EXAMPLE_USER["registered_at"], description="RFC 3339, in UTC."),
)

UserDocumentSchema = document("UserDocument", data=UserSchema)

UsersDocumentSchema = document(
    "UsersDocument",
    data=fields.List(fields.Nested(UserSchema), required=True),
    links=document(
        "PageLinks",
        self=link(f"/users?limit={DEFAULT_LIMIT}&order=asc"),
        next=link(NEXT_EXAMPLE, nullable=True, description="null on the last page."),
    ),
)
