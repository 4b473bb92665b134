"""A client gets the same responses from every ASGI server as from aiohttp's own server."""

import asyncio
import contextlib
import gzip
import pathlib
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest

from tests.asgi.application import LIMIT, create
from tests.asgi.serving import KINDS, REFERENCE, Kind, plainly
from usersvc.asgi import AiohttpASGI

PortOf = Callable[[Kind], int]
PROBES: dict[str, Callable[[httpx.AsyncClient], Awaitable[Any]]] = {}
NO_LENGTH = ("content-length", "0")  # the server decides whether an empty body has one
NOT_COMPARED = {"date", "server", "connection", "transfer-encoding", "keep-alive"}


def seen(response: httpx.Response) -> tuple[int, list[tuple[str, str]], bytes]:
    """What is compared of a response; a header that comes twice is seen twice."""
    headers = [(n.decode().lower(), v.decode("latin-1")) for n, v in response.headers.raw]
    for name in ("date", "server", "content-length", "content-type", "transfer-encoding"):
        assert len([1 for n, _ in headers if n == name]) <= 1, f"{name} came twice"
    return (
        response.status_code,
        sorted(h for h in headers if h[0] not in NOT_COMPARED and h != NO_LENGTH),
        response.content,
    )


def simple(name: str, method: str, path: str, *, size: int = 0, **arguments: Any) -> None:
    """Add a probe of one request; with `size` its body is streamed in pieces of so many bytes."""

    async def run(client: httpx.AsyncClient) -> Any:
        streamed = {"content": pieces(arguments["content"], size)} if size else {}
        return seen(await client.request(method, path, **arguments | streamed))

    PROBES[name] = run


async def pieces(data: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


HELLO = b"hello, world"
MULTIPART: dict[str, Any] = {
    "content": b"--b\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n1\r\n--b\r\nContent-Disposition: form-data; "
    b"name=\"f\"; filename=\"f.bin\"\r\nContent-Type: image/png\r\n\r\n" + b"\x00\xff" * 50_000 + b"\r\n--b--\r\n",
    "headers": {"Content-Type": "multipart/form-data; boundary=b"},
}  # fmt: skip

simple("a plain GET", "GET", "/facts")
simple("the path and the query as they were sent", "GET", "/facts/a%2Fb%20%C3%A9;x/..%2f?x=%20&y=1+1&y=%2B&z=%e9&=&a")
simple("percent signs that escape nothing", "GET", "/facts/100%/%zz?%=%zz")
simple("an empty query", "GET", "/facts?a=")
simple("two slashes at the end", "GET", "/facts/a//b//")
simple("headers that come twice, or are not ASCII", "GET", "/facts",
       headers=[(b"X-A", b"1"), (b"X-A", b"2"), (b"X-U", b"\xc3\xa9"), (b"X-L", b"\xe9"), (b"X-0", b"")])  # fmt: skip
simple("cookies", "GET", "/facts", headers={"Cookie": 'a=1; b="two words"; c=%20'})
simple("an extension method", "PURGE", "/facts")
simple("OPTIONS", "OPTIONS", "/facts")
simple("DELETE without a body", "DELETE", "/facts")
simple("DELETE with a body", "DELETE", "/echo", content=HELLO)
simple("POST with an empty body", "POST", "/facts", content=b"")
simple("an echo", "POST", "/echo", content=HELLO, headers={"Content-Type": "text/x-own; charset=utf-8"})
simple("an echo of the largest body", "POST", "/echo", content=b"x" * LIMIT)
simple("a body that is too large", "POST", "/echo", content=b"x" * (LIMIT + 1))
simple("a streamed echo", "POST", "/echo_stream", content=b"0123456789" * 100_000)
simple("a form", "POST", "/form", data={"a": "1 2&3", "b": ["\u00e9", ""]})
simple("a form of several parts", "POST", "/form", **MULTIPART)
simple("parts read one by one", "POST", "/parts",
       content=b"--b\r\nContent-Type: text/x-a\r\n\r\none\r\n--b\r\nContent-Transfer-Encoding: base64\r\n\r\ndHdv\r\n"
       b"--b--\r\n", headers={"Content-Type": "multipart/mixed; boundary=b"})  # fmt: skip
simple("a form that is too large", "POST", "/form", content=b"a=" + b"x" * LIMIT,
       headers={"Content-Type": "application/x-www-form-urlencoded"})  # fmt: skip
simple("gzip", "POST", "/echo", content=gzip.compress(HELLO * 1000), headers={"Content-Encoding": "gzip"})
simple("deflate", "POST", "/echo", content=zlib.compress(HELLO), headers={"Content-Encoding": "deflate"})
simple("deflate without a header", "POST", "/echo", content=zlib.compress(HELLO, wbits=-15),
       headers={"Content-Encoding": "deflate"})  # fmt: skip
simple("an unknown coding", "POST", "/echo", content=HELLO, headers={"Content-Encoding": "x-own"})
simple("invalid gzip", "POST", "/echo", content=HELLO, headers={"Content-Encoding": "gzip"})
simple("a decompression bomb", "POST", "/echo", content=gzip.compress(b"\0" * 50 * LIMIT),
       headers={"Content-Encoding": "gzip"})  # fmt: skip
simple("a large compressed body, read in pieces", "POST", "/count", content=gzip.compress(b"\0" * 20 * LIMIT),
       headers={"Content-Encoding": "gzip"})  # fmt: skip
simple("white space around headers, and octets that are not UTF-8", "GET", "/odd_headers",
       headers=[(b"X-There", b"caf\xe9, caf\xc3\xa9")])  # fmt: skip
simple("own headers and cookies", "GET", "/own_headers")
simple("a stream", "GET", "/stream")
simple("a stream of a known length", "GET", "/sized_stream")
simple("chunked encoding", "GET", "/chunked")
simple("an async generator", "GET", "/generator")
simple("compression", "GET", "/compressed", headers={"Accept-Encoding": "gzip"})
simple("compression not wanted", "GET", "/compressed", headers={"Accept-Encoding": "identity"})
simple("a compressed stream", "GET", "/compressed_stream")
for status in (200, 201, 204, 304, 404, 500):
    simple(f"an empty {status}", "GET", f"/empty/{status}")
for handler in ("facts", "stream", "generator", "file", "own_headers", "unread"):
    simple(f"HEAD of {handler}", "HEAD", f"/{handler}")
simple("a file of a handler", "GET", "/file")
simple("a static file", "GET", "/static/big.bin")
simple("an empty static file", "GET", "/static/empty.txt")
simple("a missing static file", "GET", "/static/none.txt")
simple("a traversal out of the static files", "GET", "/static/%2e%2e/secret")
simple("a range", "GET", "/static/hello.txt", headers={"Range": "bytes=2-9"})
simple("HEAD of a range", "HEAD", "/static/hello.txt", headers={"Range": "bytes=0-9"})
simple("a condition", "GET", "/static/hello.txt", headers={"If-None-Match": "*"})
simple("an unknown path", "GET", "/unknown")
simple("a wrong method", "POST", "/items/1")
simple("a raised HTTP exception", "GET", "/teapot")
simple("a failing handler", "GET", "/fail")
simple("a failing handler that has not read", "POST", "/fail", content=HELLO)
simple("a time-out", "GET", "/time_out")
simple("a connection to be closed", "GET", "/force_close")
simple("a sub-application and its signals", "GET", "/sub/json")
simple("a stream of a sub-application", "GET", "/sub/stream")
simple("a failing sub-application", "GET", "/sub/fail")
simple("an unknown path of a sub-application", "GET", "/sub/none")
simple("a class-based view", "GET", "/items/a%20b")
simple("a class-based view's DELETE", "DELETE", "/items/1")
simple("a method that a class-based view lacks", "PUT", "/items/1")
simple("a streamed upload", "POST", "/count", content=b"x" * 3_000_000, size=50_000)
simple("what a handler knows of a streamed upload", "POST", "/facts?read", content=HELLO, size=5)
simple("a streamed upload that is too large", "POST", "/echo", content=b"x" * (LIMIT + 1), size=2**16)
simple("an unknown expectation", "POST", "/echo", content=HELLO, headers={"Expect": "a miracle"})


async def unread_bodies(client: httpx.AsyncClient) -> Any:
    responses = [await client.post("/unread", content=b"x" * size) for size in (10, 100_000, 900_000)]
    responses += [await client.post(path, content=pieces(b"x" * 3_000_000, 2**16)) for path in ("/unread", "/stream")]
    return [seen(response) for response in [*responses, await client.post("/echo", content=HELLO)]]


async def errors_after_the_head(client: httpx.AsyncClient) -> Any:
    """What the client gets must not look like a complete response."""

    async def status(path: str) -> int | None:
        try:
            return (await client.get(path)).status_code
        except (httpx.HTTPError, RuntimeError):
            return None

    # Concurrent, as hypercorn closes an HTTP/2 connection only some time afterwards.
    return await asyncio.gather(*(status(path) for path in ("/fail_late", "/fail_sized", "/fail_generator")))


PROBES |= {
    "unread bodies and the next request": unread_bodies,
    "errors after the head": errors_after_the_head,
}


@contextlib.asynccontextmanager
async def client_of(kind: Kind, port_of: PortOf, folder: pathlib.Path) -> AsyncIterator[httpx.AsyncClient]:
    if kind.module == "httpx":
        app = AiohttpASGI(create(folder, plain=kind.plain))
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1")
    else:
        client = httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port_of(kind)}",
            http1=not kind.http2,
            http2=kind.http2,
            timeout=20,
            trust_env=False,
            verify=False,  # loading certificates would take longer than all the rest
        )
    async with client:
        yield client


References = dict[tuple[str, bool], Any]


@pytest.fixture(scope="module")
def references() -> References:
    """What aiohttp's own server responds, by the name of the probe and the form of the application."""
    return {}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
async def test_server(
    kind: Kind, port_of: PortOf, folder: pathlib.Path, references: References, subtests: pytest.Subtests
) -> None:
    for name, run in PROBES.items():
        key = name, kind.plain
        with subtests.test(name):
            # A connection for each, because aiohttp's own server leaves some of them unusable.
            if key not in references:
                async with client_of(plainly(REFERENCE) if kind.plain else REFERENCE, port_of, folder) as client:
                    references[key] = await run(client)
            async with client_of(kind, port_of, folder) as client:
                assert await run(client) == references[key]
