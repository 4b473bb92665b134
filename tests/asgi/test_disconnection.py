"""What happens when the client disconnects."""

import asyncio
import contextlib
import gc
import gzip
import weakref
from collections.abc import Awaitable
from typing import Any

import pytest
from aiohttp import ClientConnectionResetError, web
from aiohttp.test_utils import make_mocked_request

from tests.asgi.fake_server import FakeServer, app_of, hello, respond, streaming, until_gone
from usersvc.asgi import cancel_on_disconnect


def assert_uncancelled() -> None:
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_reading_fails_after_a_disconnection() -> None:
    async def handler(request: web.Request) -> web.Response:
        with pytest.raises(ConnectionResetError, match="Connection lost") as caught:
            await request.read()
        assert request.transport is None
        raise caught.value

    server = FakeServer.of_upload(5)
    server.put(b"x", more=True)
    server.disconnect()
    await server.serve(app_of(handler))
    assert server.sent == []


@pytest.mark.parametrize("broken", [False, True])
async def test_writing_fails_after_a_disconnection(broken: bool, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = await streaming(request)
        server.broken = broken
        if not broken:
            server.disconnect()
            await until_gone(request)
        with pytest.raises(ClientConnectionResetError) as caught:
            await response.write(b"two")
        raise caught.value

    server = FakeServer()
    await server.serve(app_of(handler))
    assert not server.complete
    assert caplog.text == "", "a disconnection is not logged as an error"


@pytest.mark.parametrize("handler", [hello, streaming])
async def test_response_to_a_disconnected_client_is_dropped(handler: Any) -> None:
    server = FakeServer()
    server.broken = True
    await server.serve(app_of(handler))
    assert server.sent == []


@pytest.mark.parametrize(
    ("error", "watched"), [(OSError("gone"), False), (OSError("gone"), True), (RuntimeError("a middleware"), True)]
)
async def test_failing_receive_counts_as_disconnection(error: Exception, watched: bool) -> None:
    class Failing(FakeServer):
        async def receive(self) -> Any:
            raise error

    async def handler(request: web.Request) -> web.Response:
        if watched:
            await until_gone(request)
        with pytest.raises(ConnectionResetError):
            await request.read()
        return web.Response()

    await Failing(body=b"x").serve(app_of(handler))


async def test_error_after_a_disconnection_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: web.Request) -> web.Response:
        await until_gone(request)
        raise ValueError("unrelated")

    server = FakeServer()
    server.disconnect()
    await server.serve(app_of(handler))
    assert "unrelated" in caplog.text
    assert server.sent == []


async def test_wait_is_cancelled_when_the_client_disconnects(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: web.Request) -> web.Response:
        server.disconnect()
        with pytest.raises(ConnectionResetError) as caught, cancel_on_disconnect(request):
            await asyncio.Event().wait()
        assert_uncancelled()
        assert request.transport is None
        raise caught.value

    server = FakeServer(body=b"{}")
    await server.serve(app_of(handler))
    assert_uncancelled()
    assert (server.sent, caplog.text) == ([], "")


@pytest.mark.parametrize("others", ["around", "beside"])
async def test_nested_and_concurrent_uses_are_independent(others: str) -> None:
    outcomes: list[str] = []

    async def wait(request: web.Request, what: Awaitable[object]) -> None:
        try:
            with cancel_on_disconnect(request):
                await what
        except ConnectionResetError:
            outcomes.append("gone")
            raise

    async def handler(request: web.Request) -> web.Response:
        if others == "around":
            await wait(request, short_then_forever(request))
        else:
            await asyncio.gather(wait(request, asyncio.sleep(0)), wait(request, forever()), wait(request, forever()))
        raise AssertionError

    async def forever() -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        server.disconnect()
        await asyncio.Event().wait()

    async def short_then_forever(request: web.Request) -> None:
        await wait(request, asyncio.sleep(0))
        await forever()

    server = FakeServer()
    await server.serve(app_of(handler))
    assert_uncancelled()
    assert server.sent == []
    assert outcomes == ["gone"] * (1 if others == "around" else 2)


async def test_handler_is_not_cancelled_outside_the_block() -> None:
    async def handler(request: web.Request) -> web.Response:
        with cancel_on_disconnect(request):
            await asyncio.sleep(0)
        server.disconnect()
        await until_gone(request)
        await asyncio.sleep(0)
        done.set()
        with cancel_on_disconnect(request):
            raise AssertionError("the block is not entered after a disconnection")
        return web.Response()

    done = asyncio.Event()
    server = FakeServer()
    await server.serve(app_of(handler))
    assert (done.is_set(), server.sent) == (True, [])


@pytest.mark.parametrize(("query", "tasks"), [(b"", 0), (b"wait=1", 1)])
async def test_only_cancel_on_disconnect_starts_a_task(query: bytes, tasks: int) -> None:
    async def handler(request: web.Request) -> web.Response:
        before = len(asyncio.all_tasks())
        if request.query:
            with cancel_on_disconnect(request):
                await asyncio.sleep(0)
        return web.json_response(len(asyncio.all_tasks()) - before)

    assert (await respond(handler, query_string=query)).body == b"%d" % tasks


async def test_requests_of_other_servers_are_left_alone() -> None:
    with cancel_on_disconnect(make_mocked_request("GET", "/")):
        await asyncio.sleep(0)


@pytest.mark.parametrize("disconnected", [False, True])
@pytest.mark.parametrize("watched", [False, True])
async def test_cancellation_by_the_server_propagates(watched: bool, disconnected: bool) -> None:
    started = asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        with cancel_on_disconnect(request) if watched else contextlib.nullcontext():
            started.set()
            await asyncio.Event().wait()
        raise AssertionError

    server = FakeServer()
    task = asyncio.create_task(server.serve(app_of(handler)))
    await started.wait()
    if disconnected:
        server.disconnect()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_requests_leave_no_reference_cycles() -> None:
    left: list[weakref.ref[web.Request]] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        left.append(weakref.ref(request))
        await request.read()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.Event().wait()
        assert request.transport is not None
        if "fail" in request.query:
            raise web.HTTPConflict
        response = await streaming(request)
        await asyncio.sleep(0)
        return response

    app = app_of(handler)
    gc.disable()
    try:
        for query in (b"", b"fail=1"):
            body = gzip.compress(b"hello")
            await FakeServer(body=body, headers=[(b"content-encoding", b"gzip")], query_string=query).serve(app)
        for _ in range(3):
            await asyncio.sleep(0)  # for the cancelled tasks
        assert [reference() for reference in left] == [None, None]
    finally:
        gc.enable()


async def test_transport() -> None:
    async def handler(request: web.Request) -> web.Response:
        transport = request.transport
        assert transport is not None
        assert request.get_extra_info("peername") == ("192.0.2.1", 4711)
        assert request.get_extra_info("sslcontext") is not None
        assert request.get_extra_info("cipher", "none") == "none"
        assert not transport.is_closing()
        transport.close()
        assert transport.is_closing()
        assert request.transport is None
        return web.Response(text="not sent")

    server = FakeServer(scheme="https")
    with pytest.raises(ConnectionAbortedError):
        await server.serve(app_of(handler))
    assert server.sent == []
