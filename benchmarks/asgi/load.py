"""A load generator in Python: keep-alive connections that send the next request after each response."""

import asyncio
import sys
import time

import uvloop

BODY = b'{"id": 1, "name": "alice", "tags": ["a", "b"]}'
GET = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
POST = (
    b"POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(BODY)
    + BODY
)


class Client(asyncio.Protocol):
    """One connection."""

    def __init__(self, request: bytes, until: float, done: asyncio.Semaphore) -> None:
        self.request = request
        self.until = until
        self.done = done
        self.responses = 0
        self.awaited = 0  # bytes of a response; all of them are as long as the first
        self.received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self.transport = transport
        transport.write(self.request)

    def data_received(self, data: bytes) -> None:
        self.received += data
        if not self.awaited:
            head, mark, _ = self.received.partition(b"\r\n\r\n")
            if not mark:
                return
            assert head.startswith(b"HTTP/1.1 200"), head
            length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
            self.awaited = len(head) + 4 + length
        if len(self.received) >= self.awaited:
            self.responses += 1
            self.received = b""
            if time.monotonic() < self.until:
                self.transport.write(self.request)
            else:
                self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.done.release()


async def load(port: int, request: bytes, seconds: float, connections: int) -> float:
    """Load a server on the loopback interface, and return the responses a second."""
    done = asyncio.Semaphore(0)
    loop = asyncio.get_running_loop()
    begin = time.monotonic()
    clients: list[Client] = []
    for _ in range(connections):
        _, client = await loop.create_connection(lambda: Client(request, begin + seconds, done), "127.0.0.1", port)
        clients.append(client)
    for _ in clients:
        await done.acquire()
    return sum(client.responses for client in clients) / (time.monotonic() - begin)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        method = GET if sys.argv[2] == "GET" else POST
        print(runner.run(load(int(sys.argv[1]), method, float(sys.argv[3]), int(sys.argv[4]))))
