"""JSON responses, streamed responses, and what to do when a response has been sent."""

from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Never

import orjson
from aiohttp import Payload, web
from aiohttp.abc import AbstractStreamWriter

Sent = Callable[[int, bool], None]
"""Called with the number of bytes of the body, and whether all of it was sent."""


def json_response(document: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A JSON response; JSON has no charset parameter (RFC 8259, section 11)."""
    return web.Response(body=orjson.dumps(document), status=status, headers=headers, content_type="application/json")


async def stream_response(batches: AsyncGenerator[bytes, None], content_type: str) -> web.Response:
    """A response of unknown length. What fails before the first batch is raised, and can become a problem document."""
    first = await anext(batches, b"")
    return web.Response(body=StreamedBody(first, batches), content_type=content_type)


class _Body(Payload):
    """A body that can only be written."""

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> Never:
        raise TypeError("a streamed body cannot be decoded")


class StreamedBody(_Body):
    """Batches of bytes; the generator is closed however the sending ends."""

    def __init__(self, first: bytes, batches: AsyncGenerator[bytes, None]) -> None:
        super().__init__(batches)
        self._first = first

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write all batches."""
        async with aclosing(self._value):
            await writer.write(self._first)
            async for batch in self._value:
                await writer.write(batch)

    async def close(self) -> None:
        """Close the generator, if it has not been written."""
        await self._value.aclose()


class _CountingWriter:
    """Passes a body on to the writer of aiohttp, and counts its bytes."""

    def __init__(self, writer: AbstractStreamWriter) -> None:
        self._writer = writer
        self.sent = 0

    async def write(self, chunk: bytes) -> None:
        await self._writer.write(chunk)
        self.sent += len(chunk)


class _ReportedBody(_Body):
    """Another body, the end of which is reported."""

    def __init__(self, body: Payload, sent: Sent) -> None:
        super().__init__(body)
        self._sent = sent

    async def write(self, writer: Any) -> None:
        counting = _CountingWriter(writer)
        complete = False
        try:
            await self._value.write(counting)
            complete = True
        finally:
            self._sent(counting.sent, complete)

    async def close(self) -> None:
        await self._value.close()


def when_sent(request: web.Request, response: web.StreamResponse, sent: Sent) -> None:
    """Report the end of a response: at once if its body is in memory or not sent, else when it has been streamed."""
    if not isinstance(response, web.Response) or request.method == "HEAD":
        sent(0, True)
    elif isinstance(response.body, Payload):
        response.body = _ReportedBody(response.body, sent)
    else:
        sent(len(response.body or b""), True)
