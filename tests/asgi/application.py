"""An application that uses all of aiohttp, for every server to serve: what a client sees of it must not differ."""

import asyncio
import contextlib
import gzip
import os
import pathlib
import zlib
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar

from aiohttp import BodyPartReader, MultipartWriter, web
from aiohttp.typedefs import Handler

from usersvc.asgi import cancel_on_disconnect

VISITOR: ContextVar[str] = ContextVar("VISITOR", default="unset")
EVENTS = web.AppKey("EVENTS", dict[str, asyncio.Event])
NOTES = web.AppKey("NOTES", dict[str, str])
FOLDER = web.AppKey("FOLDER", pathlib.Path)
NOTE = web.RequestKey("NOTE", str)
LIMIT = 2**20


async def facts(request: web.Request) -> web.Response:
    """Report what the handler sees of a request."""
    shown = [[name, value] for name, value in request.headers.items() if name.lower().startswith("x-")]
    found = {
        "method": request.method,
        "raw_path": request.raw_path,
        "path": request.path,
        "rel_url": str(request.rel_url),
        "query": list(request.query.items()),
        "match_info": dict(request.match_info),
        "headers": [[name.lower(), value.encode("utf-8", "surrogateescape").hex()] for name, value in shown],
        "content_type": request.content_type,
        "charset": request.charset,
        "content_length": request.content_length,
        "cookies": dict(request.cookies),
        "scheme": request.scheme,
        "secure": request.secure,
        "remote": request.remote,
        "host_is_header": request.host == request.headers.get("Host"),
        "url": str(request.url.with_port(80).with_host("server")),
        "can_read_body": request.can_read_body,
        "body_exists": request.body_exists,
        "peer": request.get_extra_info("peername")[0],
    }
    if "read" in request.query:
        await request.read()
    return web.json_response(found)


async def echo(request: web.Request) -> web.Response:
    return web.Response(body=await request.read(), content_type=request.content_type)


async def echo_stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    async for chunk in request.content.iter_any():
        await response.write(chunk)
    return response


async def count(request: web.Request) -> web.Response:
    total = 0
    async for chunk in request.content.iter_chunked(2**16):
        total += len(chunk)
    return web.json_response({"total": total})


async def lines(request: web.Request) -> web.Response:
    return web.json_response([line.decode() async for line in request.content])


async def read_then_facts(request: web.Request) -> web.Response:
    """Read the body, and only then look at the headers."""
    await request.read()
    return await facts(request)


async def unread(request: web.Request) -> web.Response:
    return web.Response(text="not read")


async def form(request: web.Request) -> web.Response:
    fields: list[list[str]] = []
    for name, value in (await request.post()).items():
        if isinstance(value, web.FileField):
            fields.append([name, value.filename, value.content_type, str(zlib.crc32(value.file.read()))])
        else:
            assert isinstance(value, str)
            fields.append([name, value])
    return web.json_response(fields)


async def parts(request: web.Request) -> web.Response:
    seen = []
    reader = await request.multipart()
    while (part := await reader.next()) is not None:
        assert isinstance(part, BodyPartReader)
        seen.append([part.headers.get("Content-Type", ""), (await part.read(decode=True)).decode()])
    return web.json_response(seen)


async def empty(request: web.Request) -> web.Response:
    return web.Response(status=int(request.match_info["status"]))


async def own_headers(request: web.Request) -> web.Response:
    response = web.Response(body=b"x", headers=[("X-Many", "1"), ("X-Many", "2"), ("X-Uni", "caf\u00e9")])
    response.set_cookie("a", "1", httponly=True, samesite="Lax")
    response.set_cookie("b", "2", max_age=5)
    response.del_cookie("c")
    response.last_modified = 0
    response.etag = "tag"
    return response


async def untyped(request: web.Request) -> web.Response:
    return web.Response(body=b"octets")


async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"X-Kind": "stream"})
    response.content_type = "text/plain"
    await response.prepare(request)
    for number in range(5):
        await response.write(b"line %d\n" % number)
        await asyncio.sleep(0)
    await response.write_eof(b"end")
    return response


async def sized_stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    response.content_length = 10
    await response.prepare(request)
    await response.write(bytearray(b"01234"))
    await response.write(memoryview(b"56789"))
    return response


async def chunked(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    response.enable_chunked_encoding()
    await response.prepare(request)
    await response.write(b"chunk")
    return response


async def generator(request: web.Request) -> web.Response:
    async def numbers() -> AsyncIterator[bytes]:
        for number in range(1000):
            yield b"%d\n" % number
            await asyncio.sleep(0)

    return web.Response(body=numbers(), content_type="text/plain")


async def multipart(request: web.Request) -> web.Response:
    with MultipartWriter("mixed", boundary="frontier") as writer:
        writer.append("first")
        writer.append_json({"second": 2})
    return web.Response(body=writer)


async def compressed(request: web.Request) -> web.Response:
    response = web.Response(text="compress me " * 500)
    response.enable_compression()
    return response


async def compressed_stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    response.enable_compression(web.ContentCoding.gzip)
    await response.prepare(request)
    for _ in range(200):
        await response.write(b"compress me " * 50)
    return response


async def file(request: web.Request) -> web.FileResponse:
    return web.FileResponse(request.app[FOLDER] / "hello.txt", headers={"X-From": "handler"})


async def fail(request: web.Request) -> web.Response:
    raise RuntimeError("the handler has failed")


async def fail_late(request: web.Request) -> web.Response:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"begun")
    raise RuntimeError("the handler has failed half-way")


async def fail_sized(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    response.content_length = 100
    await response.prepare(request)
    await response.write(b"begun")
    raise RuntimeError("the handler has failed half-way")


async def fail_generator(request: web.Request) -> web.Response:
    async def numbers() -> AsyncIterator[bytes]:
        yield b"begun"
        await asyncio.sleep(0)
        raise RuntimeError("the body has failed half-way")

    return web.Response(body=numbers())


async def time_out(request: web.Request) -> web.Response:
    async with asyncio.timeout(0):
        await asyncio.Event().wait()
    raise AssertionError


async def go_on(request: web.Request) -> web.StreamResponse:
    """End the response, and continue."""
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"to the ")
    await asyncio.sleep(0.01)
    await response.write_eof(b"end")
    for _ in range(10):
        await asyncio.sleep(0)
    return response


async def at_once(request: web.Request) -> web.StreamResponse:
    """Write more at once than the buffers of a connection hold."""
    response = web.StreamResponse()
    await response.prepare(request)
    await asyncio.sleep(0.01)
    await response.write(b"x" * 16 * LIMIT)
    return response


async def odd_headers(request: web.Request) -> web.Response:
    return web.Response(headers={"X-Wide": " a  b\t", "X-Blank": " ", "X-Back": request.headers["X-There"]})


async def redirect(request: web.Request) -> web.Response:
    raise web.HTTPFound("/facts", headers={"X-Why": "because"})


async def teapot(request: web.Request) -> web.Response:
    raise web.HTTPUnprocessableEntity(text='{"teapot": true}', content_type="application/json")


async def force_close(request: web.Request) -> web.Response:
    response = web.Response(text="bye")
    response.force_close()
    return response


async def visit(request: web.Request) -> web.Response:
    before = VISITOR.get()
    VISITOR.set(request.match_info["name"])
    await asyncio.sleep(0)
    return web.json_response([before, VISITOR.get()])


async def body_then_visit(request: web.Request) -> web.Response:
    VISITOR.set("the one who posted")
    async for _ in request.content.iter_any():
        pass
    return web.Response(text=VISITOR.get())


async def storage(request: web.Request) -> web.Response:
    request[NOTE] = "kept"
    return web.json_response({"note": request[NOTE], "config": request.config_dict[NOTES]["config"]})


async def websocket(request: web.Request) -> web.WebSocketResponse:
    response = web.WebSocketResponse()
    await response.prepare(request)
    return response


@contextlib.contextmanager
def noted_failure(request: web.Request) -> Iterator[None]:
    """Note with what a handler fails, if it does, for `/noted/{name}`."""
    name = request.query["name"]
    try:
        yield
    except Exception as error:
        request.app[NOTES][name] = _kind(error)
        raise
    finally:
        request.app[EVENTS][name].set()


async def endless(request: web.Request) -> web.StreamResponse:
    """Write until that fails."""
    response = web.StreamResponse()
    await response.prepare(request)
    with noted_failure(request):
        while True:
            await response.write(b"x" * 1000)


async def wait_for_client(request: web.Request) -> web.Response:
    """Wait for as long as the client does."""
    await request.read()
    request.app[EVENTS][f"{request.query['name']} waits"].set()
    with noted_failure(request), cancel_on_disconnect(request):
        await asyncio.wait_for(asyncio.Event().wait(), 20)
    return web.Response()


async def waiting_reader(request: web.Request) -> web.Response:
    """Read until that fails."""
    with noted_failure(request):
        await request.read()
    return web.Response()


def _kind(error: Exception) -> str:
    return "ConnectionResetError" if isinstance(error, ConnectionResetError) else type(error).__name__


async def expect(request: web.Request) -> web.Response:
    """Create the event that another request is to set."""
    request.app[EVENTS][request.match_info["name"]] = asyncio.Event()
    return web.Response()


async def noted(request: web.Request) -> web.Response:
    """Wait for that event, and report what was noted."""
    name = request.match_info["name"]
    await asyncio.wait_for(request.app[EVENTS][name].wait(), 20)
    return web.Response(text=request.app[NOTES].get(name, "nothing"))


async def hold(request: web.Request) -> web.Response:
    """Do not read the body before `/release`."""
    event = request.app[EVENTS].setdefault(request.query["name"], asyncio.Event())
    await asyncio.wait_for(event.wait(), 30)
    total = 0
    async for chunk in request.content.iter_any():
        total += len(chunk)
    return web.json_response({"total": total})


async def release(request: web.Request) -> web.Response:
    request.app[EVENTS].setdefault(request.match_info["name"], asyncio.Event()).set()
    return web.Response()


class Item(web.View):
    async def get(self) -> web.Response:
        return web.Response(text="got " + self.request.match_info["id"])

    async def delete(self) -> web.Response:
        return web.Response(status=204)


@web.middleware
async def outer(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        response = await handler(request)
    except web.HTTPNotFound as error:
        error.headers["X-Outer"] = "seen"
        raise
    if isinstance(response, web.Response):
        response.headers["X-Outer"] = type(response).__name__
    return response


@web.middleware
async def inner(request: web.Request, handler: Handler) -> web.StreamResponse:
    response = await handler(request)
    response.headers["X-Inner"] = request.match_info.handler.__name__
    return response


async def sign(request: web.Request, response: web.StreamResponse) -> None:
    response.headers["X-Signed"] = str(response.status)
    response.headers["X-Length"] = response.headers.get("Content-Length", "none")


async def life(app: web.Application) -> AsyncIterator[None]:
    app[NOTES]["config"] = "from start-up"
    yield
    app[NOTES].clear()


def fill(folder: pathlib.Path) -> None:
    """Make the files that are served."""
    (folder / "hello.txt").write_bytes(b"hello, world\n" * 10)
    (folder / "empty.txt").write_bytes(b"")
    (folder / "big.bin").write_bytes(bytes(range(256)) * 8192)
    (folder / "packed.js").write_bytes(b"let x = 1\n" * 100)
    (folder / "packed.js.gz").write_bytes(gzip.compress(b"let x = 1\n" * 100, mtime=0))
    for path in folder.iterdir():
        os.utime(path, (1_700_000_000, 1_700_000_000))


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


def create(folder: pathlib.Path, *, plain: bool = False) -> web.Application:
    """Make the application.

    Args:
        folder: of the files that `fill` has made.
        plain: without what keeps a server from shortcuts: signals before responses, and routes for any method.
    """
    app = web.Application(middlewares=[outer], client_max_size=LIMIT)
    app[EVENTS] = {}
    app[NOTES] = {}
    app[FOLDER] = folder
    app.cleanup_ctx.append(contextlib.asynccontextmanager(life))
    signed = web.Application(middlewares=[inner])
    if not plain:
        signed.on_response_prepare.append(sign)
    signed.router.add_get("/json", facts)
    signed.router.add_get("/stream", stream)
    signed.router.add_get("/storage", storage)
    signed.router.add_get("/fail", fail)
    app.add_subapp("/sub", signed)
    handlers = {
        "facts": facts, "echo": echo, "echo_stream": echo_stream, "count": count, "lines": lines, "unread": unread,
        "form": form, "parts": parts, "own_headers": own_headers, "untyped": untyped, "stream": stream,
        "sized_stream": sized_stream, "chunked": chunked, "generator": generator, "multipart": multipart,
        "compressed": compressed, "compressed_stream": compressed_stream, "file": file, "fail": fail,
        "fail_late": fail_late, "fail_sized": fail_sized, "fail_generator": fail_generator, "time_out": time_out,
        "redirect": redirect, "teapot": teapot,
        "force_close": force_close, "storage": storage, "websocket": websocket, "endless": endless,
        "waiting_reader": waiting_reader, "hold": hold, "body_then_visit": body_then_visit,
        "wait_for_client": wait_for_client, "go_on": go_on, "at_once": at_once,
        "odd_headers": odd_headers, "read_then_facts": read_then_facts,
    }  # fmt: skip
    for name, handler in handlers.items():
        for method in METHODS if plain else ("*",):
            app.router.add_route(method, f"/{name}", handler)
    app.router.add_route("*", "/facts/{rest:.*}", facts)
    app.router.add_get("/empty/{status}", empty)
    app.router.add_get("/visit/{name}", visit)
    app.router.add_post("/expect/{name}", expect)
    app.router.add_get("/noted/{name}", noted)
    app.router.add_post("/release/{name}", release)
    app.router.add_view("/items/{id}", Item)
    app.router.add_static("/static", folder)
    return app
