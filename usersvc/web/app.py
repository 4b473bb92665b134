"""The aiohttp application: routes, middlewares, life cycle."""

import asyncio
import logging
import re
import time
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import orjson
from aiohttp import Payload, web
from aiohttp.typedefs import Handler, Middleware
from aiohttp_apispec import validation_middleware
from uuid_utils import uuid4

from usersvc.application.registration import UserRegistrationService
from usersvc.application.request_context import RequestContext, request_context
from usersvc.domain.errors import Violation
from usersvc.web import openapi
from usersvc.web import users as handlers
from usersvc.web.client_address import Network, client_address
from usersvc.web.middleware import cors
from usersvc.web.middleware.authentication import AdminToken
from usersvc.web.parsing import BODY_TIMEOUT, VIOLATIONS, StrictParser, refuse_too_many
from usersvc.web.problems import InvalidRequest, NotAcceptable, RateLimited, Stopping, Unauthorized, problem_response
from usersvc.web.router import BoundedRouter
from usersvc.web.schemas.users import NO_PARAMETER, RegistrationSchema, shown

if TYPE_CHECKING:
    from usersvc.web.middleware.rate_limit import FailureLimit, RateLimit

access_log = logging.getLogger("usersvc.access")

REQUEST_ID = web.RequestKey("REQUEST_ID", str)

MAX_BODY_BYTES = 16384

MAX_ACCEPT = 1024
"""Characters of an ``Accept`` header that are looked at: browsers send under 200, and reading 32 KiB takes its time."""

Observe = Callable[[str, str, int, float], None]
"""Is told of a request: method, template of the path, status, and how long it took in seconds."""


class RequestSpan(Protocol):
    """A request as a part of a trace."""

    trace_id: str | None
    span_id: str | None
    """None when it is not recorded."""

    def end(self, status: int | None) -> None:
        """It has come to its end, with this answer; None: there was nobody left to answer."""


Trace = Callable[[str, str, str | None, Mapping[str, str]], RequestSpan]
"""Begins to trace a request, to which what goes on in this context belongs from now on: its method, scheme, template of
the path, if it has one, and header fields, which may name a parent."""

NO_ROUTE = "(no route)"
"""Told in the place of a template."""

HEADERS = (
    ("X-Content-Type-Options", "nosniff"),
    ("Cache-Control", "no-store"),
    # Nothing here is a page, but for one that has a policy of its own; for browsers that are made to take it for one.
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("X-Frame-Options", "DENY"),
    ("Referrer-Policy", "no-referrer"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
)
"""Those of every answer that does not set them itself (OWASP REST Security Cheat Sheet, "Security Headers")."""

RATE_HEADERS = web.RequestKey("RATE_HEADERS", dict[str, str])

# Of version 00 there are 55 characters; a later one may have more. ff is none, and neither id may be all zeros.
_TRACEPARENT = re.compile(
    r"(?!ff|00.{54})[0-9a-f]{2}-(?!0{32})(?P<trace>[0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?"
)
_SANE_REQUEST_ID = re.compile(r"[A-Za-z0-9._~+/=:@-]{1,128}")


async def leave_to_server(_: web.Request) -> None:
    """Do nothing about ``Expect``: the server under the application knows 100-continue, and others may be ignored.

    aiohttp's own way refuses them before any middleware runs, and so not as a problem (RFC 9110, section 10.1.1).
    """


get = partial(web.get, expect_handler=leave_to_server)
post = partial(web.post, expect_handler=leave_to_server)

ROUTES = [
    get("/", handlers.index),
    post("/register", handlers.register),
    get("/users", handlers.list_users),
    get("/users/{user_id:[^/]+}", handlers.show_user),
    get("/livez", handlers.livez),
    get("/readyz", handlers.readyz),
    get("/metrics", handlers.metrics),
    get("/problems/{code}", handlers.show_problem),
    get("/openapi.json", handlers.openapi),
    get("/docs", openapi.docs_page),
    get("/docs/static/init.js", openapi.docs_script),
    get(openapi.DOCS_ASSETS, openapi.docs_asset),
]


async def no_metrics() -> bytes:
    """Of an application that nobody has plugged any into."""
    return b""


def create_app(
    service: UserRegistrationService,
    *,
    resources: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
    max_body_bytes: int = MAX_BODY_BYTES,
    body_timeout: float = BODY_TIMEOUT,
    admin_token: str | None = None,
    admin_failures: "FailureLimit | None" = None,
    rate_limit: "RateLimit | None" = None,
    cors_origins: Sequence[str] = (),
    trusted_proxies: Sequence[Network] = (),
    check_capacity: Callable[[], None] = lambda: None,
    waiting_client: handlers.WaitingClient = lambda _: nullcontext(),
    metrics: Callable[[], Awaitable[bytes]] = no_metrics,
    observe: Observe = lambda *_: None,
    trace: Trace | None = None,
) -> web.Application:
    """The application around a service.

    Args:
        service: the use cases.
        resources: what the service needs open; entered at start-up, left at clean-up.
        max_body_bytes: a larger body is refused with 413.
        body_timeout: how long a body may take to arrive, in seconds, before it is refused with 408.
        admin_token: who sends it may read the users; None: anybody may.
        admin_failures: limits how often a client address may send a wrong token; None: there is no limit.
        rate_limit: for registrations; None: as many as anybody likes.
        cors_origins: whose pages a browser lets use the service.
        trusted_proxies: whose ``X-Forwarded-For`` is believed, for the log.
        check_capacity: raises ``QueueFull`` when a registration would be refused for want of room.
        waiting_client: within it, a registration that waits for its hash is given up when its client goes.
        metrics: gives figures in Prometheus' text format.
        observe: is told of each request.
        trace: traces each request; None: none is traced.
    """
    guards: list[Middleware] = []
    if cors_origins:
        guards.append(cors.refused_as_any_options)
    guards.append(admission(rate_limit, check_capacity))
    if admin_token is not None:
        guards.append(authentication(AdminToken(admin_token), admin_failures))
    app = web.Application(
        middlewares=[answering(observe, trusted_proxies, trace), *guards, content_negotiation, validation_middleware],
        client_max_size=max_body_bytes,
    )
    # The argument for it is deprecated, without a replacement.
    app._router = BoundedRouter()  # noqa: SLF001
    app[handlers.REGISTRATION] = service
    app[handlers.WAITING_CLIENT] = waiting_client
    app[handlers.METRICS] = metrics
    parser = StrictParser(
        rules={RegistrationSchema: service.violations},
        body_timeout=body_timeout,
    )
    with warnings.catch_warnings():
        # The keys under which validation_middleware looks are plain strings, which aiohttp advises against.
        warnings.simplefilter("ignore", web.NotAppKeyWarning)
        app["_apispec_parser"] = parser
        app["_apispec_request_data_name"] = "data"
    app.add_routes(ROUTES)
    document = openapi.openapi_document(
        app.router.routes(), password_min_length=service.password_min_length, protected=admin_token is not None
    )
    if cors_origins:
        cors.allow(app, cors_origins)
    app[openapi.DOCUMENT] = orjson.dumps(document)

    async def life_cycle(_: web.Application) -> AsyncIterator[None]:
        async with resources():
            yield

    app.cleanup_ctx.append(life_cycle)
    return app


def answering(observe: Observe, trusted_proxies: Sequence[Network], trace: Trace | None) -> Middleware:
    """Every answer carries the headers that the contract promises, and every failure is a problem document."""

    @web.middleware
    async def one_answer_shape(request: web.Request, handler: Handler) -> web.StreamResponse:
        started = time.perf_counter()
        wanted_id = request.headers.get("X-Request-ID", "")
        request_id = wanted_id if _SANE_REQUEST_ID.fullmatch(wanted_id) else str(uuid4())
        # The route, not the path: paths and queries of clients hold addresses, and worse by mistake.
        resource = request.match_info.route.resource
        route = resource.canonical if resource else None
        if trace is None:
            span = None
            request_context.set(RequestContext(request_id, _trace_id(request.headers.get("traceparent"))))
        else:
            span = trace(request.method, request.scheme, route, request.headers)
            request_context.set(RequestContext(request_id, span.trace_id, span.span_id))
        try:
            response = await handler(request)
        except asyncio.CancelledError:
            # The server gives up waiting for this request, because it is to stop; the client can still be told.
            response = problem_response(Stopping(), request_id)
        except Exception as error:
            if isinstance(error, ConnectionError) and request.transport is None:
                # The client went away while its body was read: nobody is left to answer; nothing of ours has failed.
                if span is not None:
                    span.end(None)
                raise
            response = problem_response(error, request_id)
        headers = response.headers
        headers["X-Request-ID"] = request_id
        for name, value in HEADERS:
            headers.setdefault(name, value)
        if request.secure:
            headers["Strict-Transport-Security"] = "max-age=31536000"
        headers.update(request.get(RATE_HEADERS, ()))
        status = response.status

        def ended(sent: int, whole: bool) -> None:
            seconds = time.perf_counter() - started
            observe(request.method, route or NO_ROUTE, status, seconds)
            if span is not None:
                span.end(status)
            if access_log.isEnabledFor(logging.INFO):
                client = client_address(request.remote, request.headers.getall("X-Forwarded-For", ()), trusted_proxies)
                access_log.info(
                    "request" if whole else "request broken off",
                    extra={
                        "method": request.method,
                        "route": route or NO_ROUTE,
                        "status": status,
                        "milliseconds": round(seconds * 1000, 1),
                        "bytes": sent,
                        "client": None if client is None else str(client),
                        # What is streamed may end in another context.
                        "request_id": request_id,
                    },
                )

        body = response.body if isinstance(response, web.Response) else None
        if isinstance(body, Payload) and request.method != "HEAD":
            # It must not know the response: that would be kept, with what was read for it, until there is a garbage
            # collection, and only then would be told that it was broken off.
            request[handlers.ENDED] = ended
        else:
            ended(len(body) if isinstance(body, bytes) and request.method != "HEAD" else 0, True)
        return response

    return one_answer_shape


def _trace_id(traceparent: str | None) -> str | None:
    """The trace that a request belongs to, if it names one rightly (W3C Trace Context, section 3.2)."""
    match = traceparent and _TRACEPARENT.fullmatch(traceparent)
    return match["trace"] if match else None


def admission(rate_limit: "RateLimit | None", check_capacity: Callable[[], None]) -> Middleware:
    """Refuse a registration that comes too often, or finds no room, before its body is read: floods cost little so."""

    @web.middleware
    async def admit(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.match_info.handler is handlers.register:
            if rate_limit is not None:
                try:
                    request[RATE_HEADERS] = await rate_limit.admit(request)
                except RateLimited as refused:
                    request[RATE_HEADERS] = dict(refused.headers)
                    raise
            check_capacity()
        return await handler(request)

    return admit


def authentication(token: AdminToken, failures: "FailureLimit | None") -> Middleware:
    """Require the admin token before anything else of the request is examined, so that the response reveals nothing.

    A request without ``Authorization`` is no attempt to guess the token, and is not counted.
    """

    @web.middleware
    async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
        if _noted(request).get("security"):
            authorization = request.headers.getall("Authorization", ())
            if failures is None or not authorization:
                token.admit(authorization)
            else:
                await failures.check(request)
                try:
                    token.admit(authorization)
                except Unauthorized:
                    await failures.count(request)
                    raise
        return await handler(request)

    return authenticate


def _noted(request: web.Request) -> Mapping[str, Any]:
    """What the decorators of aiohttp-apispec left on the handler."""
    noted: Mapping[str, Any] = getattr(request.match_info.handler, "__apispec__", {})
    return noted


@web.middleware
async def content_negotiation(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse a request for something that the resource does not have.

    Raises:
        NotAcceptable: ``Accept`` admits nothing that the resource has (RFC 9110, section 12.5.1).
        InvalidRequest: it has parameters, and the resource none; or too many.
    """
    noted = _noted(request)
    if noted:
        offered: Sequence[str] = noted["produces"]
        chosen = offered[0]
        accept = ",".join(request.headers.getall("Accept", ()))
        if accept:
            # Of equals the first, which is what is meant when the client does not care.
            chosen = max(offered, key=partial(weight, accept))
            if weight(accept, chosen) == 0:
                raise NotAcceptable(f"Only {', '.join(offered)} is to be had here.")
        request[handlers.MEDIA_TYPE] = chosen
        # Raw, since the query is taken apart only when it is looked at.
        if request.rel_url.raw_query_string and "text/html" not in offered and not _has_query(noted):
            refuse_too_many("query", len(request.query))
            unknown = [Violation(shown(name), "unknown-field", NO_PARAMETER) for name in dict.fromkeys(request.query)]
            if unknown and not noted["schemas"]:
                raise InvalidRequest(unknown)
            request[VIOLATIONS] = unknown
    return await handler(request)


def _has_query(noted: Mapping[str, Any]) -> bool:
    return any(schema["location"] == "querystring" for schema in noted["schemas"])


def weight(accept: str, media_type: str) -> float:
    """What an ``Accept`` header gives a media type, from 0 (not wanted) to 1, by the most specific range that fits it.

    What is no media range, or stands behind ``MAX_ACCEPT``, is passed over; a header without any admits everything.
    """
    if len(accept) > MAX_ACCEPT:
        # Less the range that is cut.
        accept = accept[:MAX_ACCEPT].rpartition(",")[0]
    weights: dict[str, float] = {}
    for element in accept.lower().split(","):
        media_range, *parameters = (part.strip() for part in element.split(";"))
        if "/" in media_range:
            given = next((part[2:] for part in parameters if part.startswith("q=")), "1")
            weights[media_range] = float(given) if re.fullmatch(r"[01](\.[0-9]{0,3})?", given) else 1.0
    fitting = (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
    return next((weights[fit] for fit in fitting if fit in weights), 0.0 if weights else 1.0)
