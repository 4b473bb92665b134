"""Routes that are found in the adapter's table give the same responses as through aiohttp's router."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.typedefs import Handler
from aiohttp.web_urldispatcher import UrlDispatcher

from tests.asgi.fake_server import FakeServer
from usersvc.asgi import AiohttpASGI
from usersvc.web.router import BoundedRouter

NAME = web.AppKey("NAME", str)
SEEN = web.RequestKey("SEEN", list[str])


def report(label: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A handler that reports its label, and what it and the middlewares see of the route."""

    async def handler(request: web.Request) -> web.Response:
        match_info = request.match_info
        with pytest.raises(RuntimeError):  # it is frozen
            match_info.add_app(request.app)
        return web.json_response(
            {
                "handler": label,
                "route": [match_info.route.method, match_info.route.handler.__name__, str(match_info.route.resource)],
                "match": dict(match_info),
                "apps": [app.get(NAME, "") for app in match_info.apps],
                "configured": request.config_dict.get(NAME),
                "path": str(request.rel_url),
                "seen": request.get(SEEN, []),
            }
        )

    handler.__name__ = label
    return handler


def noting(label: str) -> Any:
    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        request.setdefault(SEEN, []).append(f"{label} {request.app.get(NAME, '')} {request.match_info.route.method}")
        return await handler(request)

    return middleware


class View(web.View):
    async def get(self) -> web.Response:
        return await report("view")(self.request)


def application(*routes: tuple[str, str], router: UrlDispatcher | None = None) -> web.Application:
    app = web.Application()
    app[NAME] = "root"
    if router is not None:
        app._router = router
    for method, path in routes:
        app.router.add_route(method, path, report(f"{method} {path}"))
    return app


def plain() -> web.Application:
    app = application(("POST", "/two"), ("GET", "/slash/"), ("GET", "/sp ace"), ("GET", "/é"), ("*", "/any"))
    app.router.add_get("/", report("index"))
    app.router.add_get("/two", report("get"))
    app.router.add_get("/three", report("three"), allow_head=False)
    app.router.add_post("/view", report("posted"))
    app.router.add_view("/view", View)
    app.router.add_get("/two", report("never"))
    app.router.add_route("GET", "/got", View)
    return app


def with_middlewares() -> web.Application:
    app = plain()
    app.middlewares.extend([noting("one"), noting("two"), web.normalize_path_middleware()])
    return app


def shadowed() -> web.Application:
    return application(("GET", "/{name:.*}"), ("GET", "/"), ("GET", "/two"), ("GET", "/two/{x}"))


def any_first() -> web.Application:
    return application(("*", "/two"), ("GET", "/"), ("GET", "/two"))


def nested() -> web.Application:
    app = application(("GET", "/sub/two"), ("GET", "/two"))
    app.middlewares.append(noting("outer"))
    sub = application(("GET", ""), ("GET", "/two"))
    sub[NAME] = "sub"
    sub.middlewares.append(noting("inner"))
    app.add_subapp("/sub", sub)
    return app


def by_host() -> web.Application:
    app = application()
    app.add_domain("example.org", application(("GET", "/")))
    app.router.add_get("/", report("of other hosts"))
    return app


class Redirecting(UrlDispatcher):
    async def resolve(self, request: web.Request) -> Any:
        return await super().resolve(request.clone(rel_url="/two"))


def own_router() -> web.Application:
    return application(("GET", "/"), ("GET", "/two"), router=Redirecting())


def bounded_router() -> web.Application:
    return application(("GET", "/"), ("GET", "/two"), ("GET", "/two/{x}"), router=BoundedRouter())


TABLED = [any_first, bounded_router, nested, plain, shadowed, with_middlewares]
PATHS = (
    "/", "/two", "/two/", "/two/x", "/three", "/slash", "/slash/", "/sp%20ace", "/%C3%A9", "/%74wo", "/any", "/got",
    "/view", "/sub", "/sub/", "/sub/two", "/missing", "//two", "/two%2F", "/two/x/y",
)  # fmt: skip
REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    *((method, path, {}) for path in PATHS for method in ("GET", "HEAD", "POST", "OPTIONS", "get")),
    ("GET", "/two", {"query_string": b"a=1&b=%20"}),
    ("GET", "/two", {"root_path": "/two"}),
    ("GET", "/prefix/two", {"root_path": "/prefix"}),
    ("GET", "/two", {"headers": [(b"host", b"other.example")]}),
    ("GET", "/two", {"headers": [(b"expect", b"100-continue")]}),
    ("GET", "/two", {"headers": [(b"expect", b"something-else")]}),
    ("GET", "/two", {"http_version": "2"}),
    ("GET", "/two", {"raw_path": None}),
    ("GET", "/two", {"raw_path": b""}),
    ("GET", "/two", {"raw_path": b"http://example.org/two"}),
]


async def fetch(asgi: AiohttpASGI, method: str, path: str, more: dict[str, Any]) -> list[Any]:
    scope = {"method": method, "path": path, "raw_path": path.encode(), **more}
    server = await FakeServer(**scope).serve(asgi)
    body = json.loads(server.body) if server.body.startswith(b"{") else server.body
    return [server.status, sorted(server.sent[0]["headers"]), body]


@pytest.fixture
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[tuple[AiohttpASGI, AiohttpASGI]]:
    """The same application twice: with the table of routes, and with aiohttp's router alone."""
    quick, ordinary = AiohttpASGI(request.param()), AiohttpASGI(request.param())
    for asgi in (quick, ordinary):
        await asgi._start(None)
    ordinary._routes = {}
    assert bool(quick._routes) == (request.param in TABLED)
    yield quick, ordinary
    for asgi in (quick, ordinary):
        await asgi._stop()


@pytest.mark.parametrize("pair", [*TABLED, by_host, own_router], indirect=True, ids=lambda app: app.__name__)
async def test_routes_are_those_that_aiohttp_finds(pair: tuple[AiohttpASGI, AiohttpASGI]) -> None:
    quick, ordinary = pair
    for request in REQUESTS:
        assert await fetch(quick, *request) == await fetch(ordinary, *request), request


@pytest.mark.parametrize(
    ("app", "routes"),
    [
        (
            plain(),
            {b"/": {"GET", "HEAD"}, b"/two": {"GET", "HEAD", "POST"}, b"/three": {"GET"}, b"/sp ace": {"GET"}},
        ),
        (application(("GET", "/a?b"), ("GET", "/a#b"), ("GET", "/a%20b")), {}),
    ],
    ids=["plain", "escaped"],
)
async def test_table_has_only_routes_that_depend_on_path_and_method(
    app: web.Application, routes: dict[bytes, set[str]]
) -> None:
    asgi = AiohttpASGI(app)
    await asgi._start(None)
    found = {path: set(methods) for path, methods in asgi._routes.items()}
    await asgi._stop()
    assert found == routes


@pytest.mark.parametrize(("kind", "name"), [(web.Application, "_handle"), (UrlDispatcher, "resolve")])
@pytest.mark.parametrize("of_instance", [False, True])
@pytest.mark.parametrize("make", [plain, bounded_router])
async def test_tracing_tools_that_replace_methods_see_every_request(
    kind: type, name: str, of_instance: bool, make: Callable[[], web.Application], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    app = make()
    target: Any = (app if kind is web.Application else app.router) if of_instance else kind
    method = getattr(target, name)

    async def watching(*arguments: Any) -> Any:
        seen.append(arguments[-1].path)
        return await method(*arguments)

    monkeypatch.setattr(target, name, watching)
    assert (await fetch(AiohttpASGI(app), "GET", "/two", {}))[0] == 200
    assert seen == ["/two"]
