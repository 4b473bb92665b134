"""Handlers for operators and for developers of clients: index, health checks, metrics, and error codes."""

from collections.abc import Awaitable, Callable

from aiohttp import web
from aiohttp_apispec import docs, querystring_schema, response_schema

import usersvc
from usersvc.application.readiness import Readiness
from usersvc.web.openapi import ADMIN, path_parameter
from usersvc.web.problems import PROBLEMS
from usersvc.web.responses import json_response
from usersvc.web.schemas.fields import QuerySchema
from usersvc.web.schemas.operations import LINKS, IndexDocumentSchema, ProblemKindDocumentSchema, StatusDocumentSchema

READINESS = web.AppKey("READINESS", Readiness)
METRICS = web.AppKey[Callable[[], Awaitable[bytes]] | None]("METRICS")


@docs(tags=["documentation"], summary="Links to all resources")
@querystring_schema(QuerySchema)
@response_schema(IndexDocumentSchema, 200, description="Links.")
async def index(_: web.Request) -> web.Response:
    """``GET /``."""
    return json_response({"data": {"name": "usersvc", "version": usersvc.__version__}, "links": LINKS})


@docs(tags=["operation"], summary="Check that the process responds")
@querystring_schema(QuerySchema)
@response_schema(StatusDocumentSchema, 200, description="It responds.")
async def livez(_: web.Request) -> web.Response:
    """``GET /livez``."""
    return json_response({"data": {"status": "ok"}})


@docs(
    tags=["operation"],
    summary="Check that the storage responds",
    description="The result of the last check, which is at most a second old.",
    problems=["storage-unavailable"],
)
@querystring_schema(QuerySchema)
@response_schema(StatusDocumentSchema, 200, description="It responds.")
async def readyz(request: web.Request) -> web.Response:
    """``GET /readyz``."""
    await request.app[READINESS].check()
    return json_response({"data": {"status": "ok"}})


@docs(
    tags=["operation"],
    summary="Metrics for Prometheus",
    security=ADMIN,
    produces=["text/plain"],
    responses={200: {"description": "In the text format 0.0.4."}},
)
@querystring_schema(QuerySchema)
async def metrics(request: web.Request) -> web.Response:
    """``GET /metrics``."""
    exposition = request.app[METRICS]
    text = b"" if exposition is None else await exposition()
    return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


@docs(
    tags=["documentation"],
    summary="Explain an error code",
    parameters=[path_parameter("code", "The code of an error.", "email-taken")],
    problems=["not-found"],
)
@querystring_schema(QuerySchema)
@response_schema(ProblemKindDocumentSchema, 200, description="The meaning of the code.")
async def show_problem(request: web.Request) -> web.Response:
    """``GET /problems/{code}``."""
    problem = PROBLEMS.get(request.match_info["code"])
    if problem is None:
        raise web.HTTPNotFound
    names = ("code", "status", "title", "description")
    return json_response({"data": {name: getattr(problem, name) for name in names}})
