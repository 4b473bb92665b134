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


async def test_reading_fails_after_a_disconnection() -> None:
    caught: list[BaseException] = []

    async def handler(request: web.Request) -> web.Response:
        try:
            await request.read()
        except ConnectionResetError as error:
            caught.append(error)
            assert request.transport is None
            raise
        raise AssertionError

    server = FakeServer.of_upload(5)
    server.put(b"x", more=True)
    server.disconnect()
    await server.serve(app_of(handler))
    assert str(caught[0]) == "Connection lost"


@pytest.mark.parametrize("broken", [False, True])
async def test_writing_fails_after_a_disconnection(broken: bool, caplog: pytest.LogCaptureFixture) -> None:
    caught: list[BaseException] = []

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        try:
            while True:
                await response.write(b"x" * 2**14)
                await asyncio.sleep(0)
                server.broken = broken
                if not broken and not server.gone:
                    server.disconnect()
        except ClientConnectionResetError as error:
            caught.append(error)
            raise

    server = FakeServer()
    await server.serve(app_of(handler))
    assert len(caught) == 1
    assert caplog.text == "", "a disconnection is not logged as an error"


async def test_write_fails_after_a_failed_flush() -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(5):
            await asyncio.sleep(0)
        with pytest.raises(ClientConnectionResetError):
            await response.write(b"x")
        return response

    server = FakeServer()
    server.broken = True
    await server.serve(app_of(handler))
    assert server.sent == []


async def test_plain_response_to_a_disconnected_client_is_dropped() -> None:
    server = FakeServer()
    server.broken = True
    await server.serve(app_of(hello))
    assert server.sent == []


async def test_failing_receive_counts_as_disconnection() -> None:
    class Failing(FakeServer):
        error: Exception = OSError("gone")

        async def receive(self) -> Any:
            raise self.error

    outcomes: list[str] = []

    async def reading(request: web.Request) -> web.Response:
        with pytest.raises(ConnectionResetError):
            await request.read()
        outcomes.append("reading")
        return web.Response()

    async def watching(request: web.Request) -> web.Response:
        await until_gone(request)
        outcomes.append("watching")
        return web.Response()

    async def both(request: web.Request) -> web.Response:
        assert request.transport is not None
        return await reading(request)

    await Failing(body=b"x").serve(app_of(reading))
    await Failing().serve(app_of(watching))
    failing = Failing(method="POST", headers=[(b"content-length", b"5")])
    failing.error = RuntimeError("a middleware has failed")
    await failing.serve(app_of(both))
    assert outcomes == ["reading", "watching", "reading"]


async def test_error_after_a_disconnection_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: web.Request) -> web.Response:
        await until_gone(request)
        raise ValueError("unrelated")

    server = FakeServer()
    server.disconnect()
    await server.serve(app_of(handler))
    assert "unrelated" in caplog.text
    assert server.sent == []


async def test_handler_continues_after_a_disconnection() -> None:
    done: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        await until_gone(request)
        await asyncio.sleep(0)
        done.append("done")
        return web.Response()

    server = FakeServer()
    server.disconnect()
    await server.serve(app_of(handler))
    assert done == ["done"]


def uncancelled() -> bool:
    """Whether no cancellation of the running task is left over."""
    task = asyncio.current_task()
    assert task is not None
    return task.cancelling() == 0


async def test_wait_is_cancelled_when_the_client_disconnects(caplog: pytest.LogCaptureFixture) -> None:
    outcomes: list[tuple[bool, object]] = []

    async def handler(request: web.Request) -> web.Response:
        try:
            with cancel_on_disconnect(request):
                server.disconnect()
                await asyncio.Event().wait()
        except ConnectionResetError:
            outcomes.append((uncancelled(), request.transport))
            raise
        raise AssertionError

    server = FakeServer(body=b"{}")
    await server.serve(app_of(handler))
    assert (uncancelled(), server.sent) == (True, [])
    assert outcomes == [(True, None)]
    assert caplog.text == ""


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
            await asyncio.gather(wait(request, short()), wait(request, forever()), wait(request, forever()))
        raise AssertionError

    async def short() -> None:
        await asyncio.sleep(0)

    async def forever() -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        server.disconnect()
        await asyncio.Event().wait()

    async def short_then_forever(request: web.Request) -> None:
        await wait(request, short())
        await forever()

    server = FakeServer()
    await server.serve(app_of(handler))
    assert (uncancelled(), server.sent) == (True, [])
    assert outcomes == ["gone"] * (1 if others == "around" else 2)


async def test_handler_is_not_cancelled_outside_the_block() -> None:
    done: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        with cancel_on_disconnect(request):
            await asyncio.sleep(0)
        server.disconnect()
        await until_gone(request)
        done.append("done")
        return web.Response()

    server = FakeServer()
    await server.serve(app_of(handler))
    assert done == ["done"]


async def test_block_is_not_entered_after_a_disconnection() -> None:
    begun: list[str] = []

    async def handler(request: web.Request) -> web.Response:
        server.disconnect()
        await until_gone(request)
        with cancel_on_disconnect(request):
            begun.append("in vain")
        return web.Response()

    server = FakeServer()
    await server.serve(app_of(handler))
    assert (begun, server.sent) == ([], [])


async def test_errors_inside_the_block_propagate(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(request: web.Request) -> web.Response:
        with cancel_on_disconnect(request):
            raise KeyError("unrelated")

    assert (await respond(handler)).status == 500
    assert "unrelated" in caplog.text


async def test_only_cancel_on_disconnect_starts_a_task() -> None:
    watched: list[int] = []

    async def handler(request: web.Request) -> web.Response:
        before = len(asyncio.all_tasks())
        if "wait" in request.query:
            with cancel_on_disconnect(request):
                await asyncio.sleep(0)
        watched.append(len(asyncio.all_tasks()) - before)
        return web.Response()

    app = app_of(handler)
    await FakeServer().serve(app)
    await FakeServer(query_string=b"wait=1").serve(app)
    assert watched == [0, 1]


async def test_requests_of_other_servers_are_left_alone() -> None:
    with cancel_on_disconnect(make_mocked_request("GET", "/")):
        await asyncio.sleep(0)


@pytest.mark.parametrize("client_goes_too", [False, True])
@pytest.mark.parametrize("way", ["plain", "cancel_on_disconnect"])
async def test_cancellation_by_the_server_propagates(way: str, client_goes_too: bool) -> None:
    started = asyncio.Event()

    async def handler(request: web.Request) -> web.Response:
        with cancel_on_disconnect(request) if way == "cancel_on_disconnect" else contextlib.nullcontext():
            started.set()
            await asyncio.Event().wait()
        raise AssertionError

    server = FakeServer()
    task = asyncio.create_task(server.serve(app_of(handler)))
    await started.wait()
    if client_goes_too:
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
            await asyncio.sleep(0)  # for the tasks that were cancelled
        assert [reference() for reference in left] == [None, None]
    finally:
        gc.enable()


async def test_the_transport() -> None:
    async def handler(request: web.Request) -> web.Response:
        transport = request.transport
        assert transport is not None
        assert request.get_extra_info("peername") == ("192.0.2.1", 4711)
        assert request.get_extra_info("sslcontext") is not None
        assert request.get_extra_info("cipher", "none") == "none"
        assert not transport.is_closing()
        assert request.protocol.connected
        transport.close()
        assert transport.is_closing()
        assert request.transport is None
        return web.Response(text="not sent")

    server = FakeServer(scheme="https")
    with pytest.raises(ConnectionAbortedError):
        await server.serve(app_of(handler))
    assert server.sent == []
