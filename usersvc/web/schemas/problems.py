"""Schemas of problems (RFC 9457)."""

from marshmallow import Schema, fields

from usersvc.domain.user import Age
from usersvc.web.problems import PROBLEMS


class ProblemKindSchema(Schema):
    """The meaning of an error code."""

    code = fields.String(required=True, metadata={"example": "email-taken"})
    status = fields.Integer(required=True, metadata={"example": 409})
    title = fields.String(required=True, metadata={"example": "Email address taken"})
    description = fields.String(
        required=True,
        metadata={"example": "A user with this mailbox is already registered, possibly in another spelling."},
    )


class ProblemKindDocumentSchema(Schema):
    """The meaning of an error code."""

    data = fields.Nested(ProblemKindSchema, required=True)


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
