"""Schemas of the index, the health checks and the OpenAPI document."""

from marshmallow import INCLUDE, Schema, fields


class StatusSchema(Schema):
    """The state of the service."""

    status = fields.String(required=True, metadata={"enum": ["ok"], "example": "ok"})


class StatusDocumentSchema(Schema):
    """The state of the service."""

    data = fields.Nested(StatusSchema, required=True)


class IndexSchema(Schema):
    """The name and the version of the service."""

    name = fields.String(required=True, metadata={"example": "usersvc"})
    version = fields.String(required=True, metadata={"example": "0.1.0"})


class IndexLinksSchema(Schema):
    """Links to all resources."""

    self_ = fields.String(required=True, data_key="self", metadata={"format": "uri-reference", "example": "/"})
    register = fields.String(required=True, metadata={"format": "uri-reference", "example": "/register"})
    users = fields.String(required=True, metadata={"format": "uri-reference", "example": "/users"})
    docs = fields.String(required=True, metadata={"format": "uri-reference", "example": "/docs"})
    openapi = fields.String(required=True, metadata={"format": "uri-reference", "example": "/openapi.json"})
    livez = fields.String(required=True, metadata={"format": "uri-reference", "example": "/livez"})
    readyz = fields.String(required=True, metadata={"format": "uri-reference", "example": "/readyz"})
    metrics = fields.String(required=True, metadata={"format": "uri-reference", "example": "/metrics"})


class IndexDocumentSchema(Schema):
    """The index."""

    data = fields.Nested(IndexSchema, required=True)
    links = fields.Nested(IndexLinksSchema, required=True)


class OpenApiSchema(Schema):
    """An OpenAPI document, in outline."""

    class Meta:
        """It has more members."""

        unknown = INCLUDE

    openapi = fields.String(required=True, metadata={"example": "3.0.3"})
    info = fields.Dict(required=True, metadata={"example": {"title": "usersvc", "version": "1"}})
    paths = fields.Dict(required=True, metadata={"example": {}})
