"""The OpenAPI document, from what the decorators of aiohttp-apispec record about the handlers (``__apispec__``).

The library itself writes Swagger 2.0. This module writes OpenAPI 3.0, the newest that the bundled Swagger UI displays.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aiohttp import web
from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from apispec.ext.marshmallow.openapi import OpenAPIConverter

import usersvc
from usersvc.web import problems
from usersvc.web.problems import PROBLEMS, Problem
from usersvc.web.schemas.operations import ProblemSchema

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


_COMMON_HEADERS = {"X-Request-ID": header("The id of the request, its own if that is valid.", _EXAMPLE_REQUEST_ID)}

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
        openapi_version="3.0.3",
        plugins=[plugin],
        info={
            "description": "Registers users and lists them. HEAD works wherever GET does. Every error is a problem "
            "(RFC 9457) with a stable code.",
            "license": {"name": "MIT"},
        },
    )
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
    successes = {str(status): _success(metadata, response) for status, response in metadata["responses"].items()}
    operation["responses"] = successes | _failures(dict.fromkeys(codes))
    return operation


def _success(metadata: Mapping[str, Any], response: Mapping[str, Any]) -> dict[str, Any]:
    schema = response.get("schema", {"type": "object"})
    types = metadata["produces"]
    return {
        "description": response["description"],
        "headers": {**metadata.get("success_headers", {}), **_COMMON_HEADERS},
        "content": {each: {"schema": schema if each == "application/json" else {"type": "string"}} for each in types},
    }


def _failures(codes: Iterable[str]) -> dict[str, Any]:
    """The problems of an operation, grouped by status."""
    by_status: defaultdict[int, list[Problem]] = defaultdict(list)
    for code in codes:
        by_status[PROBLEMS[code].status].append(PROBLEMS[code])
    return {str(status): _failure(alike) for status, alike in by_status.items()}


def _failure(alike: Sequence[Problem]) -> dict[str, Any]:
    sent = {name: value for problem in alike for name, value in problem.headers.items()}
    examples = {
        problem.code: {"value": problems.members(problem, problem.description, _EXAMPLE_REQUEST_ID)}
        for problem in alike
    }
    return {
        "description": " ".join(f"`{problem.code}`: {problem.description}" for problem in alike),
        "headers": {name: header("Sent with this status.", value) for name, value in sent.items()} | _COMMON_HEADERS,
        "content": {problems.MEDIA_TYPE: {"schema": ProblemSchema, "examples": examples}},
    }


def _schema_name(schema: Any) -> str:
    kind = schema if isinstance(schema, type) else type(schema)
    return kind.__name__.removesuffix("Schema")
