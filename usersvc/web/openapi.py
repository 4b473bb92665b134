"""The OpenAPI document, from the decorators of aiohttp-apispec.

The library itself writes Swagger 2.0 only. This module reads the metadata that its decorators add to the handlers
(``__apispec__``) and writes OpenAPI 3.0, the newest version that the bundled Swagger UI displays.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aiohttp import web
from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from apispec.ext.marshmallow.openapi import OpenAPIConverter
from marshmallow import Schema

import usersvc
from usersvc.web import problems
from usersvc.web.problems import PROBLEMS, Problem
from usersvc.web.schemas.operations import FieldErrorSchema, ProblemSchema

OPENAPI_VERSION = "3.0.3"

# Of every operation.
_COMMON_PROBLEMS = ("not-acceptable", "internal-error", "overloaded")

BODY_PROBLEMS = ("malformed-json", "request-timeout", "body-too-large", "unsupported-media-type")
"""Of every operation with a body."""

_EXAMPLE_REQUEST_ID = "01936f3c-5e1a-7b3c-9d2e-4f5a6b7c8d9f"


def header(description: str, example: str) -> dict[str, Any]:
    """Describe a header of a response."""
    return {"description": description, "schema": {"type": "string"}, "example": example}


def path_parameter(name: str, description: str, example: str, **schema: Any) -> dict[str, Any]:
    """Describe a parameter in a path; ``schema`` restricts the string."""
    return {
        "in": "path",
        "name": name,
        "required": True,
        "description": description,
        "schema": {"type": "string", **schema},
        "example": example,
    }


def link_to_user(description: str, pointer: str) -> dict[str, Any]:
    """Describe a link to the operation that shows a user, whose id is in the body at a JSON pointer."""
    return {
        "show_user": {
            "operationId": "show_user",
            "description": description,
            "parameters": {"user_id": f"$response.body#{pointer}"},
        }
    }


_COMMON_HEADERS = {
    "X-Request-ID": header("The id that the request sent if it is valid, else a new UUID.", _EXAMPLE_REQUEST_ID),
    "X-Content-Type-Options": header("Always nosniff.", "nosniff"),
    "Cache-Control": header("Responses must not be cached.", "no-store"),
}

_REQUEST_ID_PARAMETER = {
    "in": "header",
    "name": "X-Request-ID",
    "description": "Returned in the response and written to the log. An invalid one is replaced.",
    "schema": {"type": "string"},
    "example": _EXAMPLE_REQUEST_ID,
}


BEARER = "bearerAuth"
"""The name of the security scheme."""

ADMIN: list[dict[str, list[str]]] = [{BEARER: []}]
"""The ``security`` of a handler that requires the admin token, for the document and for the authentication."""


def openapi_document(
    routes: Iterable[web.AbstractRoute], *, password_min_length: int, protected: bool = False
) -> dict[str, Any]:
    """The OpenAPI document of every route whose handler is decorated with ``docs``.

    Args:
        routes: the application's.
        password_min_length: in code points, as configured.
        protected: whether an admin token is configured.
    """
    plugin = MarshmallowPlugin(schema_name_resolver=_schema_name)
    spec = APISpec(
        title="usersvc",
        version=usersvc.__version__,
        openapi_version=OPENAPI_VERSION,
        plugins=[plugin],
        info={
            "description": "Registers users and lists them. HEAD works wherever GET does. Every error is a problem "
            "(RFC 9457) with a stable code.",
            "license": {"name": "MIT"},
        },
        servers=[{"url": "/"}],
        tags=[
            {"name": "users", "description": "Registered users"},
            {"name": "operation", "description": "For operators of the service"},
            {"name": "documentation", "description": "For developers of clients"},
        ],
    )
    for name, component in _COMMON_HEADERS.items():
        spec.components.header(name, component)
    spec.components.parameter("X-Request-ID", "header", _REQUEST_ID_PARAMETER)
    if protected:
        spec.components.security_scheme(
            BEARER, {"type": "http", "scheme": "bearer", "description": "The admin token (USERSVC_ADMIN_TOKEN)."}
        )
    assert plugin.converter is not None  # noqa: S101  # the plugin has one as soon as it belongs to a document
    for route in routes:
        metadata: Mapping[str, Any] | None = getattr(route.handler, "__apispec__", None)
        if metadata and route.resource and route.method != "HEAD":
            operation = {"operationId": route.handler.__name__, **_operation(metadata, plugin.converter, protected)}
            spec.path(path=route.resource.canonical, operations={route.method.lower(): operation})
    document = spec.to_dict()
    document["components"]["schemas"]["Registration"]["properties"]["password"]["minLength"] = password_min_length
    return document


def _operation(metadata: Mapping[str, Any], converter: OpenAPIConverter, protected: bool) -> dict[str, Any]:
    operation = {key: metadata[key] for key in ("tags", "summary", "description") if key in metadata}
    operation["parameters"] = ["X-Request-ID", *metadata["parameters"]]
    for request in metadata["schemas"]:
        if request["location"] == "json":
            content = {"application/json": {"schema": request["schema"]}}
            operation["requestBody"] = {"required": True, "content": content}
        else:
            location = request["location"].removesuffix("string")
            operation["parameters"] += converter.schema2parameters(request["schema"], location=location)
    codes = [*metadata.get("problems", ()), *_COMMON_PROBLEMS]
    if metadata["schemas"]:
        codes.append("validation-failed")
    if protected and "security" in metadata:
        operation["security"] = metadata["security"]
        codes += ["unauthorized", "rate-limited"]
    operation["responses"] = _successes(metadata) | _failures(dict.fromkeys(codes))
    return operation


def _successes(metadata: Mapping[str, Any]) -> dict[str, Any]:
    media_type, *_ = metadata["produces"]
    return {
        str(status): {
            "description": response["description"],
            "headers": _headers(metadata.get("success_headers", {})),
            **({"links": metadata["links"]} if "links" in metadata else {}),
            "content": response.get("content")
            or {media_type: {"schema": response["schema"], "example": _example(response["schema"])}}
            | metadata.get("other_content", {}),
        }
        for status, response in metadata["responses"].items()
    }


def _failures(codes: Iterable[str]) -> dict[str, Any]:
    """The problems of an operation, grouped by status."""
    by_status: defaultdict[int, list[Problem]] = defaultdict(list)
    for code in codes:
        by_status[PROBLEMS[code].status].append(PROBLEMS[code])
    return {str(status): _failure(alike) for status, alike in by_status.items()}


def _failure(alike: Sequence[Problem]) -> dict[str, Any]:
    sent = {name: value for problem in alike for name, value in problem.headers.items()}
    examples = {problem.code: {"value": _problem_example(problem)} for problem in alike}
    return {
        "description": " ".join(f"`{problem.code}`: {problem.description}" for problem in alike),
        "headers": _headers({name: header("Sent with this status.", value) for name, value in sent.items()}),
        "content": {problems.MEDIA_TYPE: {"schema": ProblemSchema, "examples": examples}},
    }


def _headers(own: Mapping[str, Any]) -> dict[str, Any]:
    return {**own, **{name: {"$ref": f"#/components/headers/{name}"} for name in _COMMON_HEADERS}}


def _problem_example(problem: Problem) -> dict[str, Any]:
    members = problems.members(problem, problem.description, _EXAMPLE_REQUEST_ID)
    if problem.code == "validation-failed":
        members["errors"] = [_example(FieldErrorSchema())]
    return members


def _example(schema: Schema) -> Any:
    """An example of a document, from the examples of its fields."""
    example: dict[str, Any] = {}
    for name, declared in schema.fields.items():
        nested = getattr(declared, "inner", declared)
        value = _example(nested.schema) if hasattr(nested, "schema") else declared.metadata["example"]
        example[declared.data_key or name] = value if nested is declared else [value]
    return example


def _schema_name(schema: Any) -> str:
    kind = schema if isinstance(schema, type) else type(schema)
    return kind.__name__.removesuffix("Schema")
