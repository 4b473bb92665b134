"""Handlers of users: register, list, show."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from urllib.parse import quote_plus
from uuid import UUID

import orjson
from aiohttp import web
from aiohttp_apispec import docs, headers_schema, querystring_schema, request_schema, response_schema

from usersvc.application.keyset import in_pages
from usersvc.application.ports import UserQueries
from usersvc.application.read_models import Order
from usersvc.application.registration import UserRegistrationService
from usersvc.domain.email_address import EmailAddress
from usersvc.web.cursor import Cursor
from usersvc.web.middleware.content_negotiation import MEDIA_TYPE
from usersvc.web.openapi import ADMIN, BODY_PROBLEMS, header, path_parameter
from usersvc.web.problems import RequestRefused
from usersvc.web.responses import json_response, stream_response
from usersvc.web.schemas import users as schemas
from usersvc.web.schemas.fields import QuerySchema

NDJSON = "application/x-ndjson"
"""One JSON object a line."""

REGISTRATION = web.AppKey("REGISTRATION", UserRegistrationService)
QUERIES = web.AppKey[UserQueries]("QUERIES")
CancelOnDisconnect = Callable[[web.Request], AbstractContextManager[None]]
CANCEL_ON_DISCONNECT = web.AppKey[CancelOnDisconnect]("CANCEL_ON_DISCONNECT")
"""A context manager that cancels what is awaited inside when the client disconnects."""


@docs(
    tags=["users"],
    summary="Register a user",
    description="Stores the user; a welcome mail is sent later. With an Idempotency-Key, the request can be repeated "
    "if the response was lost.",
    rate="register",
    problems=[*BODY_PROBLEMS, "email-taken", "idempotency-key-reused", "rate-limited", "storage-unavailable"],
    success_headers={
        "Location": header("The path of the user.", f"/users/{schemas.EXAMPLE_USER['id']}"),
        "Idempotency-Replayed": header("The registration was made before with the same Idempotency-Key.", "true"),
        "RateLimit-Policy": header("The number of requests of an address, and seconds.", '"register";q=60;w=60'),
        "RateLimit": header("The requests left, and the seconds until the count restarts.", '"register";r=59;t=60'),
    },
)
@request_schema(schemas.RegistrationSchema)
@headers_schema(schemas.RegistrationHeadersSchema)
@querystring_schema(QuerySchema)
@response_schema(schemas.UserDocumentSchema, 201, description="The user is stored.")
async def register(request: web.Request) -> web.Response:
    """``POST /register``."""
    with request.app[CANCEL_ON_DISCONNECT](request):
        registered = await request.app[REGISTRATION].register(**request["data"], **request["headers"])
    headers = {"Location": f"/users/{registered.user['id']}"}
    if registered.replayed:
        headers["Idempotency-Replayed"] = "true"
    return json_response({"data": registered.user}, status=201, headers=headers)


@docs(
    tags=["users"],
    summary="List the users",
    description="One page of users in order of registration. Users who are added or removed while you page cause "
    "no other user to be repeated or skipped.",
    produces=["application/json", NDJSON],
    problems=["storage-unavailable"],
    security=ADMIN,
    success_headers={
        "Link": header("The next page, if there is one (RFC 8288).", f'<{schemas.NEXT_EXAMPLE}>; rel="next"')
    },
)
@querystring_schema(schemas.UsersQuerySchema)
@response_schema(schemas.UsersDocumentSchema, 200, description="A page of users; as NDJSON, all users, one a line.")
async def list_users(request: web.Request) -> web.Response:
    """``GET /users``."""
    queries = request.app[QUERIES]
    query = request["querystring"]
    order: Order = query["order"]
    cursor: Cursor | None = query.get("cursor")
    after = cursor.after if cursor else None
    email: EmailAddress | None = query.get("email")
    mailbox = email.mailbox if email else None
    if request[MEDIA_TYPE] == NDJSON:
        read = partial(queries.page, order=order, mailbox=mailbox)
        pages = in_pages(read, lambda page: page.next_after, after=after, limit=query.get("limit"))
        return await stream_response((page.lines + b"\n" async for page in pages), NDJSON)
    limit: int = query.get("limit", schemas.DEFAULT_LIMIT)
    page = await queries.page(limit=limit, order=order, after=after, mailbox=mailbox)

    def link(begin: Cursor | None) -> str:
        # Only the address may contain characters that must be quoted in a query (RFC 3986, section 3.4).
        query = f"limit={limit}&order={order.value}"
        if begin is not None:
            query += f"&cursor={begin.encode()}"
        if email is not None:
            query += f"&email={quote_plus(email.typed)}"
        return f"/users?{query}"

    following = None if page.next_after is None else link(Cursor(order, page.next_after))
    links = orjson.dumps({"self": link(cursor), "next": following})
    return web.Response(
        # The only newlines are those between the lines.
        body=b'{"data":[%b],"links":%b}' % (page.lines.replace(b"\n", b","), links),
        headers={"Link": f'<{following}>; rel="next"'} if following else None,
        content_type="application/json",
    )


@docs(
    tags=["users"],
    summary="Show a user",
    parameters=[path_parameter("user_id", "The id of the user.", schemas.EXAMPLE_USER["id"], format="uuid")],
    problems=["user-not-found", "storage-unavailable"],
    security=ADMIN,
)
@querystring_schema(QuerySchema)
@response_schema(schemas.UserDocumentSchema, 200, description="The user.")
async def show_user(request: web.Request) -> web.Response:
    """``GET /users/{id}``."""
    text = request.match_info["user_id"].lower()
    try:
        user_id = UUID(text)
    except ValueError:
        raise RequestRefused("user-not-found") from None
    # UUID() also accepts braces, missing hyphens and digits of other scripts.
    user = await request.app[QUERIES].find(user_id) if str(user_id) == text else None
    if user is None:
        raise RequestRefused("user-not-found")
    return json_response({"data": user})
