"""An application that uses all of aiohttp, for every server to serve: what a client sees of it must not differ."""

import asyncio
import contextlib
import os
import pathlib
import zlib
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator

from aiohttp import BodyPartReader, web
from aiohttp.typedefs import Handler

from usersvc.asgi import cancel_on_disconnect

EVENTS = web.AppKey("EVENTS", defaultdict[str, asyncio.Event])
NOTES = web.AppKey("NOTES", dict[str, str])
FOLDER = web.AppKey("FOLDER", pathlib.Path)
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


def stream_of(
    *pieces: bytes | bytearray | memoryview, fails: bool = False, chunked: bool = False, **headers: str
) -> Handler:
    """A handler that writes these pieces one by one, and then fails if it shall."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={name.replace("_", "-"): value for name, value in headers.items()})
        if chunked:
            response.enable_chunked_encoding()
        if "compressed" in request.path:
            response.enable_compression(web.ContentCoding.gzip)
        await response.prepare(request)
        for piece in pieces:
            await response.write(piece)
            await asyncio.sleep(0)
        if fails:
            raise RuntimeError("the handler has failed half-way")
        return response

    return handler


async def generator(request: web.Request) -> web.Response:
    async def numbers() -> AsyncIterator[bytes]:
        for number in range(1000):
            yield b"%d\n" % number
            await asyncio.sleep(0)

    return web.Response(body=numbers(), content_type="text/plain")


async def compressed(request: web.Request) -> web.Response:
    response = web.Response(text="compress me " * 500)
    response.enable_compression()
    return response


async def file(request: web.Request) -> web.FileResponse:
    return web.FileResponse(request.app[FOLDER] / "hello.txt", headers={"X-From": "handler"})


async def fail(request: web.Request) -> web.Response:
    raise RuntimeError("the handler has failed")


async def fail_generator(request: web.Request) -> web.Response:
    async def body() -> AsyncIterator[bytes]:
        yield b"begun"
        raise RuntimeError("the body has failed half-way")

    return web.Response(body=body())


async def time_out(request: web.Request) -> web.Response:
    async with asyncio.timeout(0):
        await asyncio.Event().wait()
    raise AssertionError


async def odd_headers(request: web.Request) -> web.Response:
    return web.Response(headers={"X-Wide": " a  b\t", "X-Blank": " ", "X-Back": request.headers["X-There"]})


async def teapot(request: web.Request) -> web.Response:
    raise web.HTTPUnprocessableEntity(text='{"teapot": true}', content_type="application/json")


async def force_close(request: web.Request) -> web.Response:
    response = web.Response(text="bye")
    response.force_close()
    return response


@contextlib.contextmanager
def noted_failure(request: web.Request) -> Iterator[None]:
    """Note with what a handler fails, if it does, for `/noted/{name}`."""
    name = request.query["name"]
    try:
        yield
    except Exception as error:
        request.app[NOTES][name] = (
            "ConnectionResetError" if isinstance(error, ConnectionResetError) else type(error).__name__
        )
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


async def noted(request: web.Request) -> web.Response:
    """Wait for an event, and report what was noted."""
    name = request.match_info["name"]
    await asyncio.wait_for(request.app[EVENTS][name].wait(), 20)
    return web.Response(text=request.app[NOTES].get(name, "nothing"))


async def hold(request: web.Request) -> web.Response:
    """Do not read the body before `/release`."""
    await asyncio.wait_for(request.app[EVENTS]["hold"].wait(), 30)
    return await count(request)


async def release(request: web.Request) -> web.Response:
    request.app[EVENTS]["hold"].set()
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


def fill(folder: pathlib.Path) -> None:
    """Create the files that are served."""
    (folder / "hello.txt").write_bytes(b"hello, world\n" * 10)
    (folder / "empty.txt").write_bytes(b"")
    (folder / "big.bin").write_bytes(bytes(range(256)) * 8192)
    for path in folder.iterdir():
        os.utime(path, (1_700_000_000, 1_700_000_000))


METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")
LINES = [b"line %d\n" % number for number in range(5)]
STREAMS = {
    "stream": stream_of(*LINES, b"end", X_Kind="stream", Content_Type="text/plain"),
    "sized_stream": stream_of(bytearray(b"01234"), memoryview(b"56789"), Content_Length="10"),
    "chunked": stream_of(b"chunk", chunked=True),
    "compressed_stream": stream_of(*[b"compress me " * 50] * 200),
    "at_once": stream_of(b"x" * 16 * LIMIT),  # more than the buffers of a connection hold
    "fail_late": stream_of(b"begun", fails=True),
    "fail_sized": stream_of(b"begun", fails=True, Content_Length="100"),
}
HANDLERS = (
    facts, echo, echo_stream, count, unread, form, parts, own_headers, generator, compressed, file, fail,
    fail_generator, time_out, teapot, force_close, endless, waiting_reader, hold, release, wait_for_client,
    odd_headers, read_then_facts,
)  # fmt: skip


def create(folder: pathlib.Path, *, plain: bool = False) -> web.Application:
    """Create the application.

    Args:
        folder: of the files that `fill` has made.
        plain: without what keeps a server from shortcuts: signals before responses, and routes for any method.
    """
    app = web.Application(middlewares=[outer], client_max_size=LIMIT)
    app[EVENTS] = defaultdict(asyncio.Event)
    app[NOTES] = {}
    app[FOLDER] = folder
    signed = web.Application(middlewares=[inner])
    if not plain:
        signed.on_response_prepare.append(sign)
    signed.router.add_get("/json", facts)
    signed.router.add_get("/stream", STREAMS["stream"])
    signed.router.add_get("/fail", fail)
    app.add_subapp("/sub", signed)
    for name, handler in {**STREAMS, **{handler.__name__: handler for handler in HANDLERS}}.items():
        for method in METHODS if plain else ("*",):
            app.router.add_route(method, f"/{name}", handler)
    app.router.add_route("*", "/facts/{rest:.*}", facts)
    app.router.add_get("/empty/{status}", empty)
    app.router.add_get("/noted/{name}", noted)
    app.router.add_view("/items/{id}", Item)
    app.router.add_static("/static", folder)
    return app
