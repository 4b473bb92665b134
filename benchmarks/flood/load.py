"""The clients of the flood benchmark, each kind in a separate process that writes its results to stdout as JSON.

python -m benchmarks.flood.load read PORT SECONDS RATE PATH...
python -m benchmarks.flood.load flood PORT SECONDS CONNECTIONS PAUSE
python -m benchmarks.flood.load paths PORT SECONDS CONNECTIONS RATE
"""

import asyncio
import json
import os
import random
import socket
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from typing import cast

import uvloop


def get(port: int, path: str, until: float, rate: float, seconds: list[float]) -> None:
    """Request a path at a fixed rate, and record the latency of each response.

    If a request is late because the previous response was, its latency counts from the time at which it was due, since
    independent clients would not have waited. If it is late because this process was woken up late, it does not.
    """
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
    with socket.create_connection(("127.0.0.1", port)) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        due = time.perf_counter()
        while due < until:
            pause = due - time.perf_counter()
            if pause > 0:
                time.sleep(pause)
            sent = time.perf_counter() if pause > 0 else due
            connection.sendall(request)
            status = _read_response(connection)
            seconds.append(time.perf_counter() - sent)
            assert status == 200, f"{path} responded {status}"
            due += 1 / rate


def _read_response(connection: socket.socket) -> int:
    received = b""
    while True:
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError("closed in the middle of a response")
        received += piece
        head, mark, body = received.partition(b"\r\n\r\n")
        if mark and len(body) >= _content_length(head):
            return int(head[9:12])


def _content_length(head: bytes) -> int:
    return int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])


def read(port: int, seconds: float, rate: float, paths: list[str]) -> dict[str, list[float]]:
    """Request several paths at a fixed rate, on one connection each; return the latencies."""
    taken: dict[str, list[float]] = {path: [] for path in paths}
    until = time.perf_counter() + seconds
    readers = [threading.Thread(target=get, args=[port, path, until, rate, taken[path]]) for path in paths]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()
    return taken


@dataclass
class Seen:
    """The results of clients that register."""

    taken: dict[int, list[float]] = field(default_factory=dict)
    """Latencies in seconds, by status."""
    accepted_at: list[float] = field(default_factory=list)
    """The times at which users were registered, in seconds."""
    retry_after: Counter[int] = field(default_factory=Counter)
    """The number of times that each ``Retry-After`` was received."""


class Registrant(asyncio.Protocol):
    """A connection that registers one user after another, and pauses after a rejection, ignoring ``Retry-After``."""

    numbers = count()

    def __init__(self, until: float, pause: float, seen: "Seen") -> None:
        self._until = until
        self._pause = pause
        self._seen = seen
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self.ended = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transport implements it without inheriting from it.
        self._transport = cast("asyncio.Transport", transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, mark, body = self._received.partition(b"\r\n\r\n")
        if not mark or len(body) < _content_length(head):
            return
        status = int(head[9:12])
        now = time.perf_counter()
        self._seen.taken.setdefault(status, []).append(now - self._sent)
        self._received = b""
        if status == 201:
            self._seen.accepted_at.append(now)
            self._ask()
        else:
            self._seen.retry_after[int(head.lower().partition(b"retry-after:")[2].partition(b"\r\n")[0] or b"-1")] += 1
            # Not all at the same time, as they were rejected.
            self._loop.call_later(self._pause * random.uniform(0.5, 1.5), self._ask)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def close(self) -> None:
        self._transport.close()

    def _ask(self) -> None:
        if time.perf_counter() > self._until or self._transport.is_closing():
            return
        email = f"flood-{os.getpid()}-{next(self.numbers)}@example.com"
        body = b'{"email": "%s", "password": "correct horse battery staple", "age": 30}' % email.encode()
        self._sent = time.perf_counter()
        self._transport.write(
            b"POST /register HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
            b"Content-Length: %d\r\n\r\n%b" % (len(body), body)
        )


async def flood(port: int, seconds: float, connections: int, pause: float) -> dict[str, object]:
    """Register users on several connections, and return the results."""
    seen = Seen()
    until = time.perf_counter() + seconds
    loop = asyncio.get_running_loop()
    registrants: list[Registrant] = []
    for _ in range(connections):
        _, registrant = await loop.create_connection(lambda: Registrant(until, pause, seen), "127.0.0.1", port)
        registrants.append(registrant)
    await asyncio.sleep(until - time.perf_counter())
    # Clients that still wait disconnect, which frees their slots for the next round.
    for registrant in registrants:
        registrant.close()
    await asyncio.gather(*(registrant.ended for registrant in registrants))
    return vars(seen)


SEGMENTS = 8000
"""Slashes in the path of ``request_long_paths``: as many as the server's limit on the target allows."""


async def request_long_paths(port: int, seconds: float, connections: int, rate: float) -> dict[str, list[float]]:
    """Request a path of many segments, on several connections; return the latencies in seconds, by status.

    Args:
        port: of the service, on 127.0.0.1.
        seconds: how long.
        connections: each sends its next request after the previous response, but not before it is due.
        rate: requests a second, of all connections together.
    """
    taken: dict[str, list[float]] = {}
    until = time.perf_counter() + seconds
    request = b"GET " + b"/" * SEGMENTS + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        due = time.perf_counter() + number / rate
        while (now := time.perf_counter()) < until:
            await asyncio.sleep(max(0, due - now))
            sent = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(_content_length(head))
            taken.setdefault(head[9:12].decode(), []).append(time.perf_counter() - sent)
            due += connections / rate
        writer.close()
        await writer.wait_closed()

    await asyncio.gather(*map(client, range(connections)))
    return taken


if __name__ == "__main__":
    kind, port, seconds, first, *rest = sys.argv[1:]
    if kind == "read":
        print(json.dumps(read(int(port), float(seconds), float(first), rest)))
    else:
        load = request_long_paths if kind == "paths" else flood
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            print(json.dumps(runner.run(load(int(port), float(seconds), int(first), float(rest[0])))))
