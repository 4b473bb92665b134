"""Schemas of the index, the health checks, and problems (RFC 9457)."""

from marshmallow import fields

from usersvc.domain.user import Age
from usersvc.web.problems import PROBLEMS
from usersvc.web.schemas.fields import document, link, member

LINKS = {
    "self": "/",
    "openapi": "/openapi.json",
    **{name: f"/{name}" for name in ("register", "users", "docs", "livez", "readyz", "metrics")},
}
"""The links of the index."""

IndexDocumentSchema = document(
    "IndexDocument",
    data=document("Index", name=member(fields.String, "usersvc"), version=member(fields.String, "0.1.0")),
    links=document("IndexLinks", **{name: link(path) for name, path in LINKS.items()}),
)

StatusDocumentSchema = document(
    "StatusDocument", data=document("Status", status=member(fields.String, "ok", enum=["ok"]))
)

_EXAMPLE = PROBLEMS["email-taken"]

ProblemKindDocumentSchema = document(
    "ProblemKindDocument",
    data=document(
        "ProblemKind",
        code=member(fields.String, _EXAMPLE.code),
        status=member(fields.Integer, _EXAMPLE.status),
        title=member(fields.String, _EXAMPLE.title),
        description=member(fields.String, _EXAMPLE.description),
    ),
)

FieldErrorSchema = document(
    "FieldError",
    field=member(fields.String, "age", description="The member of the body or the parameter; body for the whole."),
    code=member(fields.String, "out-of-range"),
    message=member(fields.String, f"Must be from {Age.MIN} to {Age.MAX}."),
)


ProblemSchema = document(
    "Problem",
    type=link(f"/problems/{_EXAMPLE.code}"),
    title=member(fields.String, _EXAMPLE.title),
    status=member(fields.Integer, _EXAMPLE.status),
    detail=member(fields.String, _EXAMPLE.description),
    instance=link("/requests/4711", description="Carries the request id."),
    code=member(fields.String, _EXAMPLE.code, enum=[*PROBLEMS], description="Stable; explained at /problems/{code}."),
    errors=fields.List(
        fields.Nested(FieldErrorSchema),
        metadata={"description": "With validation-failed: every broken rule of every field."},
    ),
)
