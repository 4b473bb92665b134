"""One short function an endpoint: the shape of the endpoint and nothing else. Failures are told by problems.py."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, aclosing
from functools import partial
from typing import Any
from urllib.parse import quote_plus
from uuid import UUID

import orjson
from aiohttp import web
from aiohttp_apispec import docs, headers_schema, querystring_schema, request_schema, response_schema

import usersvc
from usersvc.application.read_models import Order
from usersvc.application.registration import Outcome, UserRegistrationService
from usersvc.domain.user import EmailAddress
from usersvc.web.openapi import BEARER, DOCUMENT, header, link_to_user, path_parameter
from usersvc.web.problems import PROBLEMS, UserNotFound
from usersvc.web.schemas.users import (
    DEFAULT_LIMIT,
    EXAMPLE_USER,
    NEXT_EXAMPLE,
    Cursor,
    IndexDocumentSchema,
    OpenApiSchema,
    ProblemKindDocumentSchema,
    RegistrationHeadersSchema,
    RegistrationSchema,
    StatusDocumentSchema,
    UserDocumentSchema,
    UsersDocumentSchema,
    UsersQuerySchema,
)

ADMIN: list[dict[str, list[str]]] = [{BEARER: []}]
"""Marks, for the document and for the middleware that asks for it, what the admin token protects."""

NDJSON = "application/x-ndjson"
"""One JSON object a line."""

MEDIA_TYPE = web.RequestKey("MEDIA_TYPE", str)
"""Of what the resource offers, what the client likes best."""

REGISTRATION = web.AppKey("REGISTRATION", UserRegistrationService)

WaitingClient = Callable[[web.Request], AbstractContextManager[None]]
"""Within it, what waits for the sake of a client is given up when the client goes."""

ENDED = web.RequestKey[Callable[[int, bool], None]]("ENDED")
"""Is told when a streamed answer has ended: how many bytes it had, and whether that was all."""

METRICS = web.AppKey[Callable[[], Awaitable[bytes]]]("METRICS")
"""Gives the figures in Prometheus' text format."""

WAITING_CLIENT = web.AppKey[WaitingClient]("WAITING_CLIENT")


@docs(
    tags=["users"],
    summary="Register a user",
    description="Stores the user and, apart from the request, sends a welcome. With an Idempotency-Key it can be "
    "repeated when the answer was lost.",
    problems=[
        "malformed-json",
        "request-timeout",
        "email-taken",
        "body-too-large",
        "unsupported-media-type",
        "idempotency-key-reused",
        "rate-limited",
        "storage-unavailable",
    ],
    links=link_to_user("Who has just registered.", "/data/id"),
    success_headers={
        "Location": header("Where the user is.", f"/users/{EXAMPLE_USER['id']}"),
        "Idempotency-Replayed": header("This was answered before under the same Idempotency-Key.", "true"),
        "RateLimit-Policy": header("How often one address may ask in how many seconds.", '"register";q=60;w=60'),
        "RateLimit": header("How often it still may, and in how many seconds it begins anew.", '"register";r=59;t=60'),
    },
)
@request_schema(RegistrationSchema)
@headers_schema(RegistrationHeadersSchema)
@response_schema(UserDocumentSchema, 201, description="The user is stored.")
async def register(request: web.Request) -> web.Response:
    """``POST /register``."""
    service = request.app[REGISTRATION]
    key: str | None = request["headers"].get("key")
    waiting = partial(request.app[WAITING_CLIENT], request)
    if key is None:
        outcome = Outcome(await service.register(**request["data"], waiting=waiting), replayed=False)
    else:
        outcome = await service.register_once(**request["data"], key=key, waiting=waiting)
    headers = {"Location": f"/users/{outcome.user['id']}"}
    if outcome.replayed:
        headers["Idempotency-Replayed"] = "true"
    return json_response({"data": outcome.user}, status=201, headers=headers)


@docs(
    tags=["users"],
    summary="List the users",
    description="One page of users in order of registration. Users who register or disappear while you page make no "
    "other user come twice or be skipped.",
    produces=["application/json", NDJSON],
    other_content={NDJSON: {"schema": {"type": "string"}, "example": f"{json.dumps(EXAMPLE_USER)}\n"}},
    problems=["storage-unavailable"],
    security=ADMIN,
    links=link_to_user("The first on the page.", "/data/0/id"),
    success_headers={"Link": header("The next page, if there is one (RFC 8288).", f'<{NEXT_EXAMPLE}>; rel="next"')},
)
@querystring_schema(UsersQuerySchema)
@response_schema(UsersDocumentSchema, 200, description="A page of users; as NDJSON, everybody, one a line.")
async def list_users(request: web.Request) -> web.Response:
    """``GET /users``."""
    service = request.app[REGISTRATION]
    query = request["querystring"]
    order: Order = query["order"]
    cursor: Cursor | None = query.get("cursor")
    after = cursor.after if cursor else None
    email: EmailAddress | None = query.get("email")
    if request[MEDIA_TYPE] == NDJSON:
        everybody = service.batches(order=order, after=after, email=email, limit=query.get("limit"))
        return await streamed(request, everybody)
    limit: int = query.get("limit", DEFAULT_LIMIT)
    page = await service.page(limit=limit, order=order, after=after, email=email)

    def link(begin: Cursor | None) -> str:
        # Everything but an address is made of characters that stand for themselves in a query (RFC 3986, section 3.4).
        query = f"limit={limit}&order={order.value}"
        if begin is not None:
            query += f"&cursor={begin.encode()}"
        if email is not None:
            query += f"&email={quote_plus(email.typed)}"
        return f"/users?{query}"

    following = None if page.next_after is None else link(Cursor(order, page.next_after))
    links = orjson.dumps({"self": link(cursor), "next": following})
    return web.Response(
        # A newline stands between two lines and, in JSON, nowhere inside one.
        body=b'{"data":[%b],"links":%b}' % (page.lines.replace(b"\n", b","), links),
        headers={"Link": f'<{following}>; rel="next"'} if following else None,
        content_type="application/json",
    )


@docs(
    tags=["users"],
    summary="Show a user",
    parameters=[path_parameter("user_id", "The id of the user.", EXAMPLE_USER["id"], format="uuid")],
    problems=["user-not-found", "storage-unavailable"],
    security=ADMIN,
)
@response_schema(UserDocumentSchema, 200, description="The user.")
async def show_user(request: web.Request) -> web.Response:
    """``GET /users/{id}``."""
    text = request.match_info["user_id"]
    try:
        user_id = UUID(text)
    except ValueError:
        raise UserNotFound("An id of a user is a UUID.") from None
    # UUID() also takes braces, missing hyphens and digits of other scripts.
    if str(user_id) != text.lower():
        raise UserNotFound("An id of a user is a UUID.")
    user = await request.app[REGISTRATION].find(user_id)
    if user is None:
        raise UserNotFound("There is no user with this id.")
    return json_response({"data": user})


@docs(tags=["documentation"], summary="Where everything is")
@response_schema(IndexDocumentSchema, 200, description="Links.")
async def index(_: web.Request) -> web.Response:
    """``GET /``."""
    paths = ("register", "users", "docs", "livez", "readyz", "metrics")
    return json_response(
        {
            "data": {"name": "usersvc", "version": usersvc.__version__},
            "links": {"self": "/", "openapi": "/openapi.json"} | {path: f"/{path}" for path in paths},
        }
    )


@docs(
    tags=["operation"],
    summary="Figures for Prometheus",
    security=ADMIN,
    produces=["text/plain"],
    responses={
        200: {
            "description": "In the text format 0.0.4.",
            "content": {
                "text/plain": {"schema": {"type": "string"}, "example": "usersvc_hashing_pending 0.0\n"},
            },
        }
    },
)
async def metrics(request: web.Request) -> web.Response:
    """``GET /metrics``."""
    figures = await request.app[METRICS]()
    return web.Response(body=figures, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


@docs(tags=["operation"], summary="Tell whether the process answers")
@response_schema(StatusDocumentSchema, 200, description="It does.")
async def livez(_: web.Request) -> web.Response:
    """``GET /livez``."""
    return json_response({"data": {"status": "ok"}})


@docs(
    tags=["operation"],
    summary="Tell whether the storage answers",
    description="The outcome of the last check, which is at most a second old.",
    problems=["storage-unavailable"],
)
@response_schema(StatusDocumentSchema, 200, description="It does.")
async def readyz(request: web.Request) -> web.Response:
    """``GET /readyz``."""
    await request.app[REGISTRATION].check()
    return json_response({"data": {"status": "ok"}})


@docs(
    tags=["documentation"],
    summary="Explain an error code",
    parameters=[path_parameter("code", "The code of an error.", "email-taken")],
    problems=["not-found"],
)
@response_schema(ProblemKindDocumentSchema, 200, description="What the code means.")
async def show_problem(request: web.Request) -> web.Response:
    """``GET /problems/{code}``."""
    problem = PROBLEMS.get(request.match_info["code"])
    if problem is None:
        raise web.HTTPNotFound
    return json_response(
        {
            "data": {
                "code": problem.code,
                "status": problem.status,
                "title": problem.title,
                "description": problem.description,
            }
        }
    )


@docs(
    tags=["documentation"],
    summary="This document",
)
@response_schema(OpenApiSchema, 200, description="An OpenAPI document.")
async def openapi(request: web.Request) -> web.Response:
    """``GET /openapi.json``."""
    return web.Response(body=request.app[DOCUMENT], content_type="application/json")


async def streamed(request: web.Request, batches: AsyncGenerator[bytes, None]) -> web.Response:
    """An NDJSON answer of unknown length; what fails before the first batch can still be told as a problem."""
    first = await anext(batches, b"")

    async def body() -> AsyncIterator[bytes]:
        sent, whole = 0, False
        # Taken, as it knows the request.
        ended = request.pop(ENDED)
        try:
            # A client that goes takes along whatever is held for it.
            async with aclosing(batches):
                yield first
                sent = len(first)
                async for batch in batches:
                    yield batch
                    sent += len(batch)
            whole = True
        finally:
            ended(sent, whole)

    return web.Response(body=body(), content_type=NDJSON)


def json_response(document: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A JSON answer; JSON has no charset parameter (RFC 8259, section 11)."""
    return web.Response(body=orjson.dumps(document), status=status, headers=headers, content_type="application/json")
