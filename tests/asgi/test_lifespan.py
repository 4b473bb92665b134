"""Start, stop, and scopes that are not requests."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import pytest
from aiohttp import web

from tests.asgi.fake_server import FakeServer, app_of, hello, respond, streaming
from usersvc.asgi import ASGI_SCOPE, ASGI_STATE, AiohttpASGI, Message


def test_other_objects_than_applications_are_refused() -> None:
    with pytest.raises(TypeError):
        AiohttpASGI(hello)  # type: ignore[arg-type]  # on purpose


def failing(error: BaseException) -> Callable[[web.Application], Awaitable[None]]:
    async def fail(_: web.Application) -> None:
        raise error

    return fail


def life_of(order: list[str]) -> web.Application:
    app = web.Application()
    sub = web.Application()

    def note(word: str) -> Callable[[web.Application], Awaitable[None]]:
        async def noted(_: web.Application) -> None:
            order.append(word)

        return noted

    async def context(_: web.Application) -> AsyncIterator[None]:
        order.append("context entered")
        yield
        order.append("context left")

    for each, name in ((app, "app"), (sub, "sub")):
        each.on_startup.append(note(f"{name} started"))
        each.on_shutdown.append(note(f"{name} shut down"))
        each.on_cleanup.append(note(f"{name} cleaned up"))
    app.cleanup_ctx.append(context)
    app.add_subapp("/sub", sub)
    return app


async def live(app: AiohttpASGI, **scope: Any) -> FakeServer:
    """Start an application by the lifespan protocol, and stop it."""
    server = FakeServer(type="lifespan", **scope)
    server.put_type("lifespan.startup")
    server.put_type("lifespan.shutdown")
    return await server.serve(app)


async def test_signals_and_contexts_run_in_the_order_of_aiohttp() -> None:
    order: list[str] = []
    reference: list[str] = []
    server = await live(AiohttpASGI(life_of(order)))
    runner = web.AppRunner(life_of(reference))
    await runner.setup()
    await runner.cleanup()
    assert server.types == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert order == reference
    assert len(order) == 8


async def test_cancelled_lifespan_cleans_up() -> None:
    order: list[str] = []
    server = FakeServer(type="lifespan")
    server.put_type("lifespan.startup")
    task = asyncio.create_task(server.serve(AiohttpASGI(life_of(order))))
    await server.progress.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert order[-3:] == ["context left", "app cleaned up", "sub cleaned up"]


@pytest.mark.parametrize(
    ("error", "message"),
    [(ValueError("a bad\nsetting"), "ValueError: a bad setting"), (SystemExit("stop"), "SystemExit: stop")],
)
async def test_failing_start_is_reported_and_cleaned_up(error: BaseException, message: str) -> None:
    order: list[str] = []
    app = life_of(order)
    app.on_startup.append(failing(error))
    assert (await live(AiohttpASGI(app))).sent == [{"type": "lifespan.startup.failed", "message": message}]
    assert "context left" in order


async def test_failing_clean_up_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    app = web.Application()
    app.on_cleanup.append(failing(ValueError("stuck")))
    server = await live(AiohttpASGI(app))
    assert server.sent[-1] == {"type": "lifespan.shutdown.failed", "message": "ValueError: stuck"}
    assert "clean-up" in caplog.text


async def test_first_requests_start_the_application_once() -> None:
    order: list[str] = []
    app = AiohttpASGI(life_of(order))
    servers = await asyncio.gather(*(FakeServer().serve(app) for _ in range(5)))
    assert {server.status for server in servers} == {404}
    assert order == ["context entered", "app started", "sub started"]
    assert (await live(app)).types == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert order.count("app started") == order.count("app cleaned up") == 1


async def test_failing_start_without_lifespan_fails_every_request() -> None:
    app = web.Application()
    app.on_startup.append(failing(ValueError("a bad setting")))
    asgi = AiohttpASGI(app)
    for _ in range(2):
        with pytest.raises(ValueError, match="a bad setting"):
            await FakeServer().serve(asgi)


@pytest.mark.parametrize("fails", [False, True])
async def test_application_does_not_start_twice(fails: bool) -> None:
    order: list[str] = []
    app = life_of(order)
    if fails:
        app.on_startup.append(failing(ValueError("a bad setting")))
    asgi = AiohttpASGI(app)
    types: list[str] = []
    for _ in range(2):
        types += (await live(asgi)).types
    assert types[-1] == "lifespan.startup.failed"
    assert order.count("app started") == order.count("context left") == 1


async def test_lifespan_state_is_available_to_the_application() -> None:
    app = web.Application()

    async def start(app: web.Application) -> None:
        app[ASGI_STATE]["pool"] = "a pool"

    async def respond_with_state(request: web.Request) -> web.Response:
        return web.Response(text=request[ASGI_SCOPE]["state"]["pool"])

    app.on_startup.append(start)
    app.router.add_get("/", respond_with_state)
    asgi = AiohttpASGI(app)
    state: dict[str, Any] = {}
    lifespan = FakeServer(type="lifespan", state=state)
    lifespan.put_type("lifespan.startup")
    task = asyncio.create_task(lifespan.serve(asgi))
    await lifespan.progress.wait()
    assert (await FakeServer(state=state.copy()).serve(asgi)).body == b"a pool"
    lifespan.put_type("lifespan.shutdown")
    await task


async def test_unknown_scopes_are_refused() -> None:
    with pytest.raises(ValueError, match="carrier-pigeon"):
        await respond(hello, type="carrier-pigeon")


async def test_websocket_scopes_are_closed() -> None:
    server = FakeServer(type="websocket")
    server.put_type("websocket.connect")
    await server.serve(app_of(hello))
    assert server.types == ["websocket.close"]


async def test_each_request_has_its_own_context() -> None:
    visitor: ContextVar[str] = ContextVar("visitor", default="unset")
    outside: ContextVar[str] = ContextVar("outside", default="nothing")
    called: list[str] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        before = visitor.get()
        visitor.set("set")
        await asyncio.sleep(0)
        await request.read()
        response = await streaming(request)
        await response.write(f" {before} {visitor.get()} {outside.get()}".encode())
        return response

    class Listening(FakeServer):
        async def receive(self) -> Any:
            called.append(visitor.get())
            return await super().receive()

        async def send(self, message: Message) -> None:
            called.append(visitor.get())
            await super().send(message)

    app = web.Application()
    app.router.add_post("/", handler)
    asgi = AiohttpASGI(app)
    outside.set("a middleware")
    for _ in range(2):
        server = await Listening(body=b"x").serve(asgi)
        assert server.body == b"one unset set a middleware"
    assert visitor.get() == "unset"
    assert set(called) == {"unset"}, "a server must not be called in a handler's context"
