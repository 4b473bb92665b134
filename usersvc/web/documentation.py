"""``GET /openapi.json`` and ``GET /docs``: the OpenAPI document, and Swagger UI.

The page of aiohttp-apispec has an inline script; this one has none, so that a strict policy can protect it.
"""

import re
from functools import cache
from pathlib import Path

import aiohttp_apispec
from aiohttp import web
from aiohttp_apispec import docs, querystring_schema

from usersvc.web.openapi import header
from usersvc.web.schemas.fields import QuerySchema

DOCUMENT = web.AppKey("DOCUMENT", bytes)
"""The OpenAPI document, serialized."""

_OWN = Path(__file__).parent / "swagger_ui"
_PAGE = (_OWN / "index.html").read_text("utf-8")
# No script but the files of this host, and no request to any other host.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


@docs(
    tags=["documentation"],
    summary="This document",
    responses={200: {"description": "An OpenAPI document."}},
)
@querystring_schema(QuerySchema)
async def openapi(request: web.Request) -> web.Response:
    """``GET /openapi.json``."""
    return web.Response(body=request.app[DOCUMENT], content_type="application/json")


@docs(
    tags=["documentation"],
    summary="Swagger UI",
    success_headers={"Content-Security-Policy": header("Only scripts and requests of this host.", _POLICY)},
    produces=["text/html"],
    responses={200: {"description": "A page for a browser."}},
)
async def docs_page(_: web.Request) -> web.Response:
    """``GET /docs``. Unknown query parameters are ignored."""
    return web.Response(
        text=_PAGE,
        content_type="text/html",
        headers={"Content-Security-Policy": _POLICY, "Cross-Origin-Opener-Policy": "same-origin"},
    )


async def docs_asset(request: web.Request) -> web.Response:
    """A file of the page; the route matches the names of ``_ASSETS`` only."""
    name = request.match_info["name"]
    folder, media_type = _ASSETS[name]
    headers = {"Content-Type": media_type, "Cache-Control": "public, max-age=86400"}
    return web.Response(body=_read(folder / name), headers=headers)


_read = cache(Path.read_bytes)
_BUNDLED = Path(aiohttp_apispec.__file__).parent / "static"
_ASSETS = {
    "init.js": (_OWN, "text/javascript; charset=utf-8"),
    "swagger-ui.css": (_BUNDLED, "text/css; charset=utf-8"),
    "swagger-ui-bundle.js": (_BUNDLED, "text/javascript; charset=utf-8"),
    "favicon-32x32.png": (_BUNDLED, "image/png"),
}
DOCS_ASSETS = f"/docs/static/{{name:{'|'.join(map(re.escape, _ASSETS))}}}"
"""The path of the assets."""
