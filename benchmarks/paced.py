"""A client that reads at a steady pace, and one that exports all users, each in a separate process.

The pace does not depend on the responses: a delayed response is measured from the time at which its request was due, so
that a server that stalls cannot hide it by delaying the client (coordinated omission).
"""

import argparse
import json
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

PACE = 0.02
"""Seconds between two requests: short enough to notice every stall, long enough to cause no load."""


@dataclass(frozen=True, slots=True)
class Report:
    """The latency of the responses, in milliseconds."""

    requests: int
    p50_ms: float
    p99_ms: float


def measure(url: str, *, seconds: float, headers: Mapping[str, str]) -> Report:
    """Send requests at a steady pace, from a separate process."""
    command = [sys.executable, "-m", "benchmarks.paced", url, str(seconds), json.dumps(dict(headers))]
    output = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    return Report(**json.loads(output))


def export(url: str, *, headers: Mapping[str, str], resident: Callable[[], float]) -> tuple[int, float, float]:
    """Export all users as NDJSON as fast as possible.

    Args:
        url: of the list of users.
        headers: to send.
        resident: returns the memory of the server.

    Returns:
        The number of rows, the seconds, and the maximum growth of memory.
    """
    before = most = resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.05):
            most = max(most, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    rows = 0
    began = time.perf_counter()
    connection = _connected(url)
    connection.sendall(_request(url, {**headers, "Accept": "application/x-ndjson", "Connection": "close"}))
    while piece := connection.recv(2**18):
        # The frames of the chunked coding have no newline without a return before it.
        rows += piece.count(b"}\n")
    seconds = time.perf_counter() - began
    connection.close()
    done.set()
    watcher.join()
    return rows, seconds, most - before


def _connected(url: str) -> socket.socket:
    parts = urlsplit(url)
    connection = socket.create_connection((parts.hostname or "", parts.port or 80))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def _request(url: str, headers: Mapping[str, str]) -> bytes:
    parts = urlsplit(url)
    target = f"{parts.path}?{parts.query}" if parts.query else parts.path
    lines = [
        f"GET {target} HTTP/1.1",
        f"Host: {parts.netloc}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode("ascii")


def main() -> None:
    """Send requests, and print the result as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("seconds", type=float)
    parser.add_argument("headers", type=json.loads)
    chosen = parser.parse_args()
    request, connection = _request(chosen.url, chosen.headers), _connected(chosen.url)
    responses = connection.makefile("rb")
    took: list[float] = []
    due = time.perf_counter()
    end = due + chosen.seconds
    while due < end:
        time.sleep(max(0.0, due - time.perf_counter()))
        asked = time.perf_counter()
        connection.sendall(request)
        status, length = responses.readline(), 0
        while line := responses.readline().strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        responses.read(length)
        if b" 200 " not in status:
            sys.exit(f"the status was {status.decode()}")
        # A late start of this process is not the fault of the server.
        took.append(time.perf_counter() - (due if asked - due > PACE else asked))
        due += PACE
    took.sort()
    percentile = statistics.quantiles(took, n=100, method="inclusive")
    print(json.dumps({"requests": len(took), "p50_ms": percentile[49] * 1000, "p99_ms": percentile[98] * 1000}))


if __name__ == "__main__":
    main()
