"""OpenAPI 3 and Swagger UI, from the decorators and the assets of aiohttp-apispec.

The library itself writes Swagger 2.0 only and serves a page with a script inside; this module reads what its
decorators left on the handlers (``__apispec__``) and makes an OpenAPI 3.0 document of it, the newest version that the
bundled Swagger UI shows, and serves the UI's files behind a page that a strict Content-Security-Policy can lock.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import aiohttp_apispec
from aiohttp import web
from apispec import APISpec
from apispec.ext.marshmallow import MarshmallowPlugin
from apispec.ext.marshmallow.openapi import OpenAPIConverter
from marshmallow import Schema

import usersvc
from usersvc.web import problems
from usersvc.web.problems import PROBLEMS, Problem
from usersvc.web.schemas.users import FieldErrorSchema, ProblemSchema

DOCUMENT = web.AppKey("DOCUMENT", bytes)
"""The OpenAPI document, as it is sent."""

OPENAPI_VERSION = "3.0.3"

# Any operation may end so.
_COMMON_PROBLEMS = ("not-acceptable", "internal-error", "overloaded")

_EXAMPLE_REQUEST_ID = "01936f3c-5e1a-7b3c-9d2e-4f5a6b7c8d9f"


def header(description: str, example: str) -> dict[str, Any]:
    """A header of a response, for the document."""
    return {"description": description, "schema": {"type": "string"}, "example": example}


def path_parameter(name: str, description: str, example: str, **schema: Any) -> dict[str, Any]:
    """A parameter in a path, for the document; ``schema`` narrows the string."""
    return {
        "in": "path",
        "name": name,
        "required": True,
        "description": description,
        "schema": {"type": "string", **schema},
        "example": example,
    }


def link_to_user(description: str, pointer: str) -> dict[str, Any]:
    """A link of a response to the operation that shows a user, whose id stands in the body at a JSON pointer."""
    return {
        "show_user": {
            "operationId": "show_user",
            "description": description,
            "parameters": {"user_id": f"$response.body#{pointer}"},
        }
    }


_COMMON_HEADERS = {
    "X-Request-ID": header("The request's own id if it sent a sane one, else a fresh UUID.", _EXAMPLE_REQUEST_ID),
    "X-Content-Type-Options": header("Always nosniff.", "nosniff"),
    "Cache-Control": header("Nothing here is for a cache.", "no-store"),
}

_REQUEST_ID_PARAMETER = {
    "in": "header",
    "name": "X-Request-ID",
    "description": "Comes back in the response and in the log. An odd one is replaced.",
    "schema": {"type": "string"},
    "example": _EXAMPLE_REQUEST_ID,
}


BEARER = "bearerAuth"
"""The name of the security scheme."""


def openapi_document(
    routes: Iterable[web.AbstractRoute], *, password_min_length: int, protected: bool = False
) -> dict[str, Any]:
    """The OpenAPI document of every route whose handler is decorated with ``docs``.

    Args:
        routes: the application's.
        password_min_length: in code points, as the service is set.
        protected: whether what may be protected by the admin token is.
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
            {"name": "users", "description": "Who is registered"},
            {"name": "operation", "description": "For those who run the service"},
            {"name": "documentation", "description": "For those who use it"},
        ],
    )
    for name, component in _COMMON_HEADERS.items():
        spec.components.header(name, component)
    spec.components.parameter("X-Request-ID", "header", _REQUEST_ID_PARAMETER)
    if protected:
        spec.components.security_scheme(
            BEARER, {"type": "http", "scheme": "bearer", "description": "The admin token (USERSVC_ADMIN_TOKEN)."}
        )
    for route in routes:
        noted: Mapping[str, Any] | None = getattr(route.handler, "__apispec__", None)
        if noted and route.resource and route.method != "HEAD":
            spec.path(
                path=route.resource.canonical,
                operations={
                    route.method.lower(): _operation(route.handler.__name__, noted, plugin.converter, protected)
                },
            )
    document = spec.to_dict()
    document["components"]["schemas"]["Registration"]["properties"]["password"]["minLength"] = password_min_length
    return document


def _operation(
    name: str, noted: Mapping[str, Any], converter: OpenAPIConverter | None, protected: bool
) -> dict[str, Any]:
    assert converter is not None  # noqa: S101  # the plugin has one as soon as it belongs to a document
    operation: dict[str, Any] = {"operationId": name}
    operation |= {key: noted[key] for key in ("tags", "summary", "description") if key in noted}
    operation["parameters"] = ["X-Request-ID", *noted["parameters"]]
    for request in noted["schemas"]:
        if request["location"] == "json":
            operation["requestBody"] = {
                "required": True,
                "content": {"application/json": {"schema": request["schema"]}},
            }
        else:
            location = request["location"].removesuffix("string")
            operation["parameters"] += converter.schema2parameters(request["schema"], location=location)
    codes = [*noted.get("problems", ()), *_COMMON_PROBLEMS]
    if "text/html" not in noted["produces"]:
        # A parameter that the resource does not have.
        codes.append("validation-failed")
    if protected and "security" in noted:
        operation["security"] = noted["security"]
        codes += ["unauthorized", "rate-limited"]
    operation["responses"] = _successes(noted) | _failures(dict.fromkeys(codes))
    return operation


def _successes(noted: Mapping[str, Any]) -> dict[str, Any]:
    media_type, *_ = noted["produces"]
    return {
        str(status): {
            "description": response["description"],
            "headers": _headers(noted.get("success_headers", {})),
            **({"links": noted["links"]} if "links" in noted else {}),
            "content": response.get("content")
            or {media_type: {"schema": response["schema"], "example": _example(response["schema"])}}
            | noted.get("other_content", {}),
        }
        for status, response in noted["responses"].items()
    }


def _failures(codes: Iterable[str]) -> dict[str, Any]:
    """The problems of an operation, those of one status together."""
    by_status: defaultdict[int, list[Problem]] = defaultdict(list)
    for code in codes:
        by_status[PROBLEMS[code].status].append(PROBLEMS[code])
    return {
        str(status): {
            "description": " ".join(f"`{problem.code}`: {problem.description}" for problem in alike),
            "headers": _headers(
                {
                    name: header("Goes with this status.", value)
                    for problem in alike
                    for name, value in (problem.headers or {}).items()
                }
            ),
            "content": {
                problems.MEDIA_TYPE: {
                    "schema": ProblemSchema,
                    "examples": {problem.code: {"value": _problem_example(problem)} for problem in alike},
                }
            },
        }
        for status, alike in by_status.items()
    }


def _headers(own: Mapping[str, Any]) -> dict[str, Any]:
    return {**own, **{name: {"$ref": f"#/components/headers/{name}"} for name in _COMMON_HEADERS}}


def _problem_example(problem: Problem) -> dict[str, Any]:
    members = problems.members(problem, problem.description, _EXAMPLE_REQUEST_ID)
    if problem.code == "validation-failed":
        members["errors"] = [_example(FieldErrorSchema())]
    return members


def _example(schema: Schema) -> Any:
    """An example of a document, put together from those of its fields."""
    example: dict[str, Any] = {}
    for name, declared in schema.fields.items():
        nested = getattr(declared, "inner", declared)
        value = _example(nested.schema) if hasattr(nested, "schema") else declared.metadata["example"]
        example[declared.data_key or name] = value if nested is declared else [value]
    return example


def _schema_name(schema: Any) -> str:
    kind = schema if isinstance(schema, type) else type(schema)
    return kind.__name__.removesuffix("Schema")


_PAGE = """<!DOCTYPE html>
<html lang="en">
  <head>
    <meta charset="utf-8">
    <title>usersvc API</title>
    <link rel="stylesheet" href="docs/static/swagger-ui.css">
    <link rel="icon" type="image/png" href="docs/static/favicon-32x32.png" sizes="32x32">
  </head>
  <body>
    <div id="swagger-ui"></div>
    <script src="docs/static/swagger-ui-bundle.js"></script>
    <script src="docs/static/init.js"></script>
  </body>
</html>
"""
_INIT = """// Swagger UI would load any document that ?url=, ?config= or ?configUrl= names.
history.replaceState(null, "", location.pathname + location.hash);
window.ui = SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  validatorUrl: null,
});
"""
# No script but the files of this host, and no request to any other host.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_CACHED = {"Cache-Control": "public, max-age=86400"}


@aiohttp_apispec.docs(
    tags=["documentation"],
    summary="Swagger UI",
    success_headers={"Content-Security-Policy": header("No script and no request but to this host.", _POLICY)},
    produces=["text/html"],
    responses={
        200: {
            "description": "A page for a browser.",
            "content": {"text/html": {"schema": {"type": "string"}, "example": _PAGE}},
        }
    },
)
async def docs_page(_: web.Request) -> web.Response:
    """``GET /docs``: Swagger UI."""
    return web.Response(
        text=_PAGE,
        content_type="text/html",
        headers={"Content-Security-Policy": _POLICY, "Cross-Origin-Opener-Policy": "same-origin"},
    )


async def docs_script(_: web.Request) -> web.Response:
    """The script that starts Swagger UI; a file of its own, so that the page needs no script inside."""
    return web.Response(text=_INIT, content_type="text/javascript", headers=_CACHED)


async def docs_asset(request: web.Request) -> web.Response:
    """One of Swagger UI's own files, by name; the route admits no others."""
    name = request.match_info["name"]
    kind = _ASSET_TYPES[name]
    charset = "utf-8" if kind.startswith("text/") else None
    return web.Response(body=_asset(name), content_type=kind, charset=charset, headers=_CACHED)


@cache
def _asset(name: str) -> bytes:
    return (files(aiohttp_apispec) / "static" / name).read_bytes()


_ASSET_TYPES = {
    "swagger-ui.css": "text/css",
    "swagger-ui-bundle.js": "text/javascript",
    "favicon-32x32.png": "image/png",
}
DOCS_ASSETS = f"/docs/static/{{name:{'|'.join(map(re.escape, _ASSET_TYPES))}}}"
"""The path of the files that the page needs."""
