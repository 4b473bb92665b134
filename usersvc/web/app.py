"""The aiohttp application: routes, middlewares, life cycle."""

import warnings
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial

import orjson
from aiohttp import web
from aiohttp_apispec import validation_middleware

from usersvc.application.ports import UserQueries
from usersvc.application.readiness import Readiness
from usersvc.application.registration import UserRegistrationService
from usersvc.domain.user import User
from usersvc.web import documentation, operations, users
from usersvc.web.client_address import Network
from usersvc.web.middleware import cors
from usersvc.web.middleware.authentication import authentication
from usersvc.web.middleware.content_negotiation import content_negotiation
from usersvc.web.middleware.errors import errors
from usersvc.web.middleware.rate_limit import RateLimit, rate_limit
from usersvc.web.middleware.request_log import Observe, request_log
from usersvc.web.middleware.security_headers import security_headers
from usersvc.web.middleware.tracing import Trace, tracing
from usersvc.web.openapi import openapi_document
from usersvc.web.parsing import Parser
from usersvc.web.router import BoundedRouter
from usersvc.web.schemas.users import RegistrationSchema

MAX_BODY_BYTES = 16384


async def leave_to_server(_: web.Request) -> None:
    """Ignore ``Expect``, which aiohttp would refuse without a problem document; the server handles 100-continue."""


get = partial(web.get, expect_handler=leave_to_server)
post = partial(web.post, expect_handler=leave_to_server)

ROUTES = [
    get("/", operations.index),
    post("/register", users.register),
    get("/users", users.list_users),
    get("/users/{user_id:[^/]+}", users.show_user),
    get("/livez", operations.livez),
    get("/readyz", operations.readyz),
    get("/metrics", operations.metrics),
    get("/problems/{code}", operations.show_problem),
    get("/openapi.json", documentation.openapi),
    get("/docs", documentation.docs_page),
    get(documentation.DOCS_ASSETS, documentation.docs_asset),
]


def create_app(
    service: UserRegistrationService,
    queries: UserQueries,
    readiness: Readiness,
    *,
    resources: Callable[[], AbstractAsyncContextManager[None]] = nullcontext,
    max_body_bytes: int = MAX_BODY_BYTES,
    admin_token: str | None = None,
    admin_failures: RateLimit | None = None,
    rate_limits: Mapping[str, RateLimit] | None = None,
    cors_origins: Sequence[str] = (),
    trusted_proxies: Sequence[Network] = (),
    cancel_on_disconnect: users.CancelOnDisconnect = lambda _: nullcontext(),
    metrics: Callable[[], Awaitable[bytes]] | None = None,
    observe: Observe = lambda *_: None,
    trace: Trace | None = None,
) -> web.Application:
    """The application around the use cases.

    Args:
        service: registers users.
        queries: reads users for display.
        readiness: checks the storage.
        resources: entered at start-up and left at clean-up.
        max_body_bytes: the limit of a body.
        admin_token: required to read users; None: they are open.
        admin_failures: limits wrong tokens by client address; None: no limit.
        rate_limits: by the ``rate`` in the metadata of a handler; None: no limits.
        cors_origins: the origins whose pages may use the service in a browser.
        trusted_proxies: whose ``X-Forwarded-For`` is used, for the log.
        cancel_on_disconnect: cancels a registration when its client disconnects.
        metrics: returns the metrics in the text format of Prometheus; None: there are none.
        observe: called for each request.
        trace: starts the span of each request; None: no tracing.
    """
    app = web.Application(
        middlewares=[
            request_log(observe, trusted_proxies),
            *([] if trace is None else [tracing(trace)]),
            security_headers,
            errors,
            *([cors.refuse_preflight] if cors_origins else []),
            *([rate_limit(rate_limits)] if rate_limits else []),
            *([] if admin_token is None else [authentication(admin_token, admin_failures)]),
            content_negotiation,
            validation_middleware,
        ],
        client_max_size=max_body_bytes,
    )
    # The argument for it is deprecated, without a replacement.
    app._router = BoundedRouter()  # noqa: SLF001
    app[users.REGISTRATION] = service
    app[users.QUERIES] = queries
    app[users.CANCEL_ON_DISCONNECT] = cancel_on_disconnect
    app[operations.READINESS] = readiness
    app[operations.METRICS] = metrics
    with warnings.catch_warnings():
        # validation_middleware uses plain strings as keys, which aiohttp warns about.
        warnings.simplefilter("ignore", web.NotAppKeyWarning)
        violations = partial(User.violations, password_min_length=service.password_min_length)
        app["_apispec_parser"] = Parser({RegistrationSchema: violations})
        app["_apispec_request_data_name"] = "data"
    app.add_routes(ROUTES)
    document = openapi_document(
        app.router.routes(), password_min_length=service.password_min_length, protected=admin_token is not None
    )
    app[documentation.DOCUMENT] = orjson.dumps(document)
    if cors_origins:
        cors.allow(app, cors_origins)

    app.cleanup_ctx.append(lambda _: resources())
    return app
