"""A reader who asks at a steady pace, and one who takes everything: clients in a process of their own.

The pace is kept whatever the answers take: what is late counts from when it should have been asked, so that a server
that stalls cannot hide it by keeping the client from asking (coordinated omission).
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
"""Seconds between two requests: enough to notice every stall, too little to load anything."""


@dataclass(frozen=True, slots=True)
class Report:
    """How long the answers took, in milliseconds."""

    requests: int
    p50_ms: float
    p99_ms: float


def measure(url: str, *, seconds: float, headers: Mapping[str, str]) -> Report:
    """Ask at a steady pace, from a process of its own."""
    command = [sys.executable, "-m", "benchmarks.paced", url, str(seconds), json.dumps(dict(headers))]
    output = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    return Report(**json.loads(output))


def export(url: str, *, headers: Mapping[str, str], resident: Callable[[], float]) -> tuple[int, float, float]:
    """Take everybody as NDJSON as fast as it comes.

    Args:
        url: of the users.
        headers: to send.
        resident: what tells the server's memory.

    Returns:
        Rows, seconds, and by how much memory grew at most.
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
    """Ask, and print what it came to as JSON."""
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("seconds", type=float)
    parser.add_argument("headers", type=json.loads)
    chosen = parser.parse_args()
    request, connection = _request(chosen.url, chosen.headers), _connected(chosen.url)
    answers = connection.makefile("rb")
    took: list[float] = []
    due = time.perf_counter()
    end = due + chosen.seconds
    while due < end:
        time.sleep(max(0.0, due - time.perf_counter()))
        asked = time.perf_counter()
        connection.sendall(request)
        status, length = answers.readline(), 0
        while line := answers.readline().strip():
            name, _, value = line.partition(b":")
            if name.lower() == b"content-length":
                length = int(value)
        answers.read(length)
        if b" 200 " not in status:
            sys.exit(f"it answered {status.decode()}")
        # A late start of ours alone is the scheduler's doing on this side, not the server's.
        took.append(time.perf_counter() - (due if asked - due > PACE else asked))
        due += PACE
    took.sort()
    percentile = statistics.quantiles(took, n=100, method="inclusive")
    print(json.dumps({"requests": len(took), "p50_ms": percentile[49] * 1000, "p99_ms": percentile[98] * 1000}))


if __name__ == "__main__":
    main()
