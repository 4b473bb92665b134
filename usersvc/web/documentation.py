"""``GET /openapi.json`` and ``GET /docs``: the OpenAPI document, and Swagger UI.

The page that aiohttp-apispec serves has an inline script. This one has none, so that a strict
``Content-Security-Policy`` can protect it; the other assets are those of the library.
"""

import re
from functools import cache
from importlib.resources import files

import aiohttp_apispec
from aiohttp import web
from aiohttp_apispec import docs, querystring_schema, response_schema

from usersvc.web.openapi import header
from usersvc.web.schemas.fields import QuerySchema
from usersvc.web.schemas.operations import OpenApiSchema

DOCUMENT = web.AppKey("DOCUMENT", bytes)
"""The OpenAPI document, serialized."""

_PAGE, _INIT = ((files("usersvc.web") / "swagger_ui" / name).read_text("utf-8") for name in ("index.html", "init.js"))
# No script but the files of this host, and no request to any other host.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_CACHED = {"Cache-Control": "public, max-age=86400"}


@docs(tags=["documentation"], summary="This document")
@querystring_schema(QuerySchema)
@response_schema(OpenApiSchema, 200, description="An OpenAPI document.")
async def openapi(request: web.Request) -> web.Response:
    """``GET /openapi.json``."""
    return web.Response(body=request.app[DOCUMENT], content_type="application/json")


@docs(
    tags=["documentation"],
    summary="Swagger UI",
    success_headers={"Content-Security-Policy": header("Only scripts and requests of this host.", _POLICY)},
    produces=["text/html"],
    responses={
        200: {
            "description": "A page for a browser.",
            "content": {"text/html": {"schema": {"type": "string"}, "example": _PAGE}},
        }
    },
)
async def docs_page(_: web.Request) -> web.Response:
    """``GET /docs``. Unknown query parameters are ignored."""
    return web.Response(
        text=_PAGE,
        content_type="text/html",
        headers={"Content-Security-Policy": _POLICY, "Cross-Origin-Opener-Policy": "same-origin"},
    )


async def docs_script(_: web.Request) -> web.Response:
    """The script that starts Swagger UI."""
    return web.Response(text=_INIT, content_type="text/javascript", headers=_CACHED)


async def docs_asset(request: web.Request) -> web.Response:
    """A file of Swagger UI; the route matches the names of ``_ASSET_TYPES`` only."""
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
"""The path of the assets."""
