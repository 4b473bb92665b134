"""A TCP proxy that fails on request: it breaks, refuses or holds connections, or loses a response."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

Connect = Callable[[], Awaitable[tuple[asyncio.StreamReader, asyncio.StreamWriter]]]


class Proxy:
    """Forwards each connection to a server; ``proxy`` creates one."""

    def __init__(self, connect: Connect) -> None:
        self.port = 0
        self.lost = asyncio.Event()
        """Set when a response was lost."""
        self.refused = asyncio.Semaphore(0)
        """Released for each refused connection."""
        self._connect = connect
        self._open: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._loses_response = False
        self._refuses = False

    def cut(self) -> None:
        """Break every connection."""
        for writer in self._open:
            writer.transport.abort()

    def refuse(self) -> None:
        """Break every connection, and every new one at once."""
        self._refuses = True
        self.cut()

    def hold(self) -> None:
        """Forward nothing, as a cable that was pulled out: connections stay open."""
        self._flowing.clear()

    def recover(self) -> None:
        """Forward everything again."""
        self._refuses = False
        self._flowing.set()

    def lose_next_response(self) -> None:
        """Forward the next request, and break the connection at its response."""
        self.lost.clear()
        self._loses_response = True

    async def forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            writer.transport.abort()
            self.refused.release()
            return
        server_reader, server_writer = await self._connect()
        self._open |= {writer, server_writer}
        await asyncio.gather(self._copy(reader, server_writer), self._copy(server_reader, writer, is_response=True))
        self._open -= {writer, server_writer}

    async def _copy(
        self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, is_response: bool = False
    ) -> None:
        with suppress(OSError):
            while piece := await source.read(65536):
                await self._flowing.wait()
                if is_response and self._loses_response:
                    self._loses_response = False
                    self.lost.set()
                    self.cut()
                target.write(piece)
        target.close()


@asynccontextmanager
async def proxy(connect: Connect) -> AsyncIterator[Proxy]:
    """A proxy on a free port."""
    made = Proxy(connect)
    async with await asyncio.start_server(made.forward, "127.0.0.1", 0) as server:
        made.port = server.sockets[0].getsockname()[1]
        try:
            yield made
        finally:
            made.recover()
            made.cut()
