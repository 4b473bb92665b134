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


class StreamedBody(Payload):
    """Batches of bytes; the generator is closed however the sending ends."""

    def __init__(self, first: bytes, batches: AsyncGenerator[bytes, None]) -> None:
        super().__init__(batches)
        self._first = first
        self.when_sent: list[Sent] = []

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> Never:
        """Refuse: the body can only be written."""
        raise TypeError

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write all batches."""
        size = 0
        complete = False
        try:
            async with aclosing(self._value):
                await writer.write(self._first)
                size = len(self._first)
                async for batch in self._value:
                    await writer.write(batch)
                    size += len(batch)
            complete = True
        finally:
            for sent in self.when_sent:
                sent(size, complete)

    async def close(self) -> None:
        """Close the generator, if it has not been written."""
        await self._value.aclose()


def when_sent(request: web.Request, response: web.StreamResponse, sent: Sent) -> None:
    """Report the end of a response: at once if its body is in memory or not sent, else when it has been streamed."""
    body = response.body if isinstance(response, web.Response) and request.method != "HEAD" else None
    if isinstance(body, StreamedBody):
        body.when_sent.append(sent)
    else:
        sent(len(body) if isinstance(body, bytes) else 0, True)
