"""Routes that are found without aiohttp's router: nobody can tell."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
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


def frozen(match_info: web.UrlMappingMatchInfo, app: web.Application) -> bool:
    try:
        match_info.add_app(app)
    except RuntimeError:
        return True
    return False


def tells(label: str) -> Callable[[web.Request], Awaitable[web.Response]]:
    """A handler that tells which it is, and what it and the middlewares see of the route."""

    async def handler(request: web.Request) -> web.Response:
        return web.json_response(
            {
                "handler": label,
                "route": [request.match_info.route.method, request.match_info.route.handler.__name__],
                "resource": str(request.match_info.route.resource),
                "match": dict(request.match_info),
                "apps": [app.get(NAME, "") for app in request.match_info.apps],
                "app": request.app.get(NAME),
                "configured": request.config_dict.get(NAME),
                "path": str(request.rel_url),
                "seen": request.get(SEEN, []),
                "frozen": frozen(request.match_info, request.app),
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
        return await tells("view")(self.request)


def plain() -> web.Application:
    app = web.Application()
    app[NAME] = "root"
    app.router.add_get("/", tells("index"))
    app.router.add_get("/two", tells("get"))
    app.router.add_get("/three", tells("three"), allow_head=False)
    app.router.add_post("/two", tells("post"))
    app.router.add_get("/slash/", tells("slash"))
    app.router.add_get("/sp ace", tells("space"))
    app.router.add_get("/é", tells("accent"))
    app.router.add_route("*", "/any", tells("any"))
    app.router.add_post("/view", tells("posted"))
    app.router.add_view("/view", View)
    app.router.add_get("/two", tells("never"))
    app.router.add_route("GET", "/got", View)
    return app


def with_middlewares() -> web.Application:
    app = plain()
    app.middlewares.extend([noting("one"), noting("two"), web.normalize_path_middleware()])
    return app


def shadowed() -> web.Application:
    app = web.Application()
    app.router.add_get("/{name:.*}", tells("everything"))
    app.router.add_get("/", tells("never"))
    app.router.add_get("/two", tells("most explicit first"))
    app.router.add_get("/two/{x}", tells("dynamic"))
    return app


def any_first() -> web.Application:
    app = web.Application()
    app.router.add_route("*", "/two", tells("any"))
    app.router.add_get("/", tells("between"))
    app.router.add_get("/two", tells("never"))
    return app


def nested() -> web.Application:
    app = web.Application(middlewares=[noting("outer")])
    app[NAME] = "root"
    sub = web.Application(middlewares=[noting("inner")])
    sub[NAME] = "sub"
    sub.router.add_get("", tells("sub index"))
    sub.router.add_get("/two", tells("sub two"))
    app.add_subapp("/sub", sub)
    app.router.add_get("/sub/two", tells("most explicit first"))
    app.router.add_get("/two", tells("root two"))
    return app


def by_host() -> web.Application:
    app = web.Application()
    sub = web.Application()
    sub.router.add_get("/", tells("of the host"))
    app.add_domain("example.org", sub)
    app.router.add_get("/", tells("of any other"))
    return app


class Upside(UrlDispatcher):
    """A router of somebody's own."""

    async def resolve(self, request: web.Request) -> Any:
        return await super().resolve(request.clone(rel_url="/two"))


def own_router() -> web.Application:
    app = plain()
    app._router = Upside()
    app.router.add_get("/", tells("index"))
    app.router.add_get("/two", tells("two"))
    return app


def bounded_router() -> web.Application:
    app = web.Application()
    app._router = BoundedRouter()
    app.router.add_get("/", tells("index"))
    app.router.add_get("/two", tells("two"))
    app.router.add_get("/two/{x}", tells("dynamic"))
    return app


TABLED = {plain, with_middlewares, shadowed, any_first, nested, bounded_router}
APPS = [*sorted(TABLED, key=lambda app: app.__name__), by_host, own_router]
REQUESTS: list[tuple[str, str, dict[str, Any]]] = [
    (method, path, {})
    for path in (
        "/", "/two", "/two/", "/two/x", "/three", "/slash", "/slash/", "/sp%20ace", "/%C3%A9", "/%74wo", "/any", "/got",
        "/view", "/sub", "/sub/", "/sub/two", "/missing", "//two", "/two%2F", "/two/x/y",
    )
    for method in ("GET", "HEAD", "POST", "OPTIONS", "get")
] + [
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
]  # fmt: skip


async def answer(asgi: AiohttpASGI, method: str, path: str, more: dict[str, Any]) -> list[Any]:
    scope = {"method": method, "path": path, "raw_path": path.encode(), **more}
    server = await FakeServer(**scope).serve(asgi)
    told: Any = server.body
    if told.startswith(b"{"):
        told = json.loads(told)
    return [server.status, sorted(server.sent[0]["headers"]), told]


@pytest.fixture
async def pair(request: pytest.FixtureRequest) -> AsyncIterator[tuple[AiohttpASGI, AiohttpASGI]]:
    """The same application twice: with the shim's way to find routes, and with aiohttp's alone."""
    quick, ordinary = AiohttpASGI(request.param()), AiohttpASGI(request.param())
    await quick._start(None)
    await ordinary._start(None)
    ordinary._routes = {}
    assert bool(quick._routes) == (request.param in TABLED)
    yield quick, ordinary
    await quick._stop()
    await ordinary._stop()


@pytest.mark.parametrize("pair", APPS, indirect=True, ids=lambda app: app.__name__)
async def test_a_route_is_the_one_that_aiohttp_finds(pair: tuple[AiohttpASGI, AiohttpASGI]) -> None:
    quick, ordinary = pair
    for request in REQUESTS:
        assert await answer(quick, *request) == await answer(ordinary, *request), request


async def test_only_what_path_and_method_decide_is_found_so() -> None:
    asgi = AiohttpASGI(plain())
    await asgi._start(None)
    assert {path: set(methods) for path, methods in asgi._routes.items()} == {
        b"/": {"GET", "HEAD"},
        b"/two": {"GET", "HEAD", "POST"},
        b"/three": {"GET"},
        b"/sp ace": {"GET", "HEAD"},
    }
    await asgi._stop()


async def test_a_path_that_a_target_cannot_have_as_it_is_is_not_found_so() -> None:
    app = web.Application()
    for path in ("/a?b", "/a#b", "/a%20b"):
        app.router.add_get(path, tells(path))
    asgi = AiohttpASGI(app)
    await asgi._start(None)
    assert asgi._routes == {}
    await asgi._stop()


VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="unset")


async def test_what_a_view_does_when_it_is_made_stays_in_its_request() -> None:
    class Setting(web.View):
        def __init__(self, request: web.Request) -> None:
            super().__init__(request)
            self.found = VARIABLE.get()
            VARIABLE.set("set")

        async def get(self) -> web.Response:
            return web.json_response({"found": self.found, "now": VARIABLE.get()})

    app = web.Application()
    app.router.add_route("GET", "/", Setting)
    asgi = AiohttpASGI(app)
    for _ in range(2):
        assert (await answer(asgi, "GET", "/", {}))[2] == {"found": "unset", "now": "set"}
    assert VARIABLE.get() == "unset"


@pytest.mark.parametrize(("kind", "name"), [(web.Application, "_handle"), (UrlDispatcher, "resolve")])
@pytest.mark.parametrize("of_instance", [False, True])
@pytest.mark.parametrize("make", [plain, bounded_router])
async def test_who_watches_aiohttp_at_work_sees_every_request(
    kind: type, name: str, of_instance: bool, make: Callable[[], web.Application], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tracing tools put methods of their own in the place of these."""
    seen: list[str] = []
    app = make()
    target: Any = (app if kind is web.Application else app.router) if of_instance else kind
    method = getattr(target, name)

    async def watching(*arguments: Any) -> Any:
        seen.append(arguments[-1].path)
        return await method(*arguments)

    monkeypatch.setattr(target, name, watching)
    assert (await answer(AiohttpASGI(app), "GET", "/two", {}))[0] == 200
    assert seen == ["/two"]


async def test_a_handler_may_keep_what_it_likes_under_any_name() -> None:
    async def handler(request: web.Request) -> web.Response:
        request.route = "mine"
        return web.json_response({"method": request.match_info.route.method})

    app = web.Application()
    app.router.add_get("/", handler)
    assert (await answer(AiohttpASGI(app), "GET", "/", {}))[2] == {"method": "GET"}
