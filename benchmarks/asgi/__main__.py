"""Requests a second and memory of the ASGI adapter, Starlette (under the same uvicorn) and aiohttp's own server.

All of them run on uvloop, in one process each, and are loaded in turn, so that other load on the machine affects all of
them equally. A ratio is the median of the ratios of the rounds.
"""

import argparse
import asyncio
import contextlib
import os
import pathlib
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from benchmarks.asgi.applications import CHUNK, CHUNKS
from benchmarks.asgi.load import BODY

ROOT = pathlib.Path(__file__).resolve().parents[2]
UVICORN = (
    "uvicorn", "--factory", "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning",
    "--port",
)  # fmt: skip
SHIM, STARLETTE, AIOHTTP = "shim on uvicorn", "Starlette on uvicorn", "aiohttp's own server"
COMMANDS = {
    SHIM: (*UVICORN, "{port}", "benchmarks.asgi.applications:shim"),
    STARLETTE: (*UVICORN, "{port}", "benchmarks.asgi.applications:starlette"),
    AIOHTTP: ("benchmarks.asgi.applications", "{port}"),
}
GOALS = {STARLETTE: 1.0, AIOHTTP: 0.8}
MIB = 2**20
MEMORY_GOAL = 8  # MiB


@dataclass
class Server:
    """A running server."""

    name: str
    port: int
    process: subprocess.Popen[bytes]
    rates: dict[str, list[float]] = field(default_factory=dict)
    costs: dict[str, list[float]] = field(default_factory=dict)

    def cpu_seconds(self) -> float:
        stat = pathlib.Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rsplit(")", 1)[1].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    def resident(self) -> float:
        pages = pathlib.Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii").split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE") / MIB


@contextlib.contextmanager
def running(name: str) -> Iterator[Server]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", *(word.format(port=port) for word in COMMANDS[name])]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)  # aborted warm-up transfers cause errors
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                break
            time.sleep(0.1)
        else:
            sys.exit(f"{name} does not start")
        yield Server(name, port, process)
    finally:
        process.terminate()
        process.wait(30)


def rate(server: Server, method: str, seconds: float, connections: int, script: str | None) -> float:
    """Load a server, and return the requests a second."""
    if script is None:
        words = ["-m", "benchmarks.asgi.load", str(server.port), method, str(seconds), str(connections)]
        return float(subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, check=True).stdout)
    words = ["wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s"]
    words += ["-s", script] if method == "POST" else []
    output = subprocess.run(
        [*words, f"http://127.0.0.1:{server.port}/"], capture_output=True, check=True, text=True
    ).stdout
    if "Non-2xx" in output:
        sys.exit(output)
    return float(output.split("Requests/sec:")[1].split()[0])


def compare(rounds: int, seconds: float, connections: int, script: str | None) -> bool:
    with contextlib.ExitStack() as stack:
        servers = {name: stack.enter_context(running(name)) for name in COMMANDS}
        for server in servers.values():
            for method in ("GET", "POST"):
                rate(server, method, 0.5, connections, script)  # warm up
        for _ in range(rounds):
            for method in ("GET", "POST"):
                for server in servers.values():
                    before = server.cpu_seconds()
                    begin = time.monotonic()
                    found = rate(server, method, seconds, connections, script)
                    requests = found * min(seconds, time.monotonic() - begin)
                    server.rates.setdefault(method, []).append(found)
                    server.costs.setdefault(method, []).append((server.cpu_seconds() - before) / requests * 1e6)
    good = True
    print(f"{'':24}{'requests/s':>12}{'CPU us/req':>12}{'shim / this':>14}{'goal':>8}")
    for method in ("GET", "POST"):
        print(f"{method}, {'small JSON' if method == 'GET' else 'echo'}")
        for name, server in servers.items():
            line = f"  {name:22}{statistics.median(server.rates[method]):12.0f}"
            line += f"{statistics.median(server.costs[method]):12.1f}"
            if name != SHIM:
                pairs = zip(servers[SHIM].rates[method], server.rates[method], strict=True)
                ratio = statistics.median(ours / theirs for ours, theirs in pairs)
                line += f"{ratio:14.2f}{'>= ' + str(GOALS[name]):>8}"
                good = good and ratio >= GOALS[name]
            print(line)
    return good


async def transfer(port: int, direction: str, chunks: int) -> None:
    """Send or receive the chunks of a body as fast as possible."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    if direction == "up":
        writer.write(
            b"POST /upload HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
            % (chunks * len(CHUNK))
        )
        for _ in range(chunks):
            writer.write(CHUNK)
            await writer.drain()
        received = await reader.read()
        assert received.endswith(b"%d" % (chunks * len(CHUNK))), received[-100:]
    else:
        writer.write(b"GET /download HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        taken = 0
        while taken < chunks * len(CHUNK):
            data = await reader.read(2**18)
            assert data, "the download ends too early"
            taken += len(data)
    writer.close()


async def growth(server: Server, direction: str) -> tuple[float, float]:
    """Transfer 1 GiB; return the maximum growth of the server's memory, in MiB, and the seconds."""
    await transfer(server.port, direction, CHUNKS // 16)  # warm up
    before = most = server.resident()
    begin = time.monotonic()
    task = asyncio.create_task(transfer(server.port, direction, CHUNKS))
    while not task.done():
        await asyncio.wait({task}, timeout=0.02)
        most = max(most, server.resident())
    task.result()
    return most - before, time.monotonic() - begin


def memory() -> bool:
    good = True
    print(f"\n{'1 GiB':24}{'growth, MiB':>12}{'seconds':>12}{'':14}{'goal':>8}")
    for name in COMMANDS:
        with running(name) as server:
            for direction in ("up", "down"):
                grown, seconds = asyncio.run(growth(server, direction))
                goal = f"< {MEMORY_GOAL}" if name == SHIM else ""
                good = good and (name != SHIM or grown < MEMORY_GOAL)
                print(f"  {direction + ', ' + name:28}{grown:6.1f}{seconds:12.1f}{'':14}{goal:>8}")
    return good


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.asgi", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, choices=range(1, 51), metavar="1-50")
    parser.add_argument("--seconds", type=float, default=2.0, help="of each server, method and round")
    parser.add_argument("--connections", type=int, default=32, choices=range(1, 257), metavar="1-256")
    parser.add_argument("--no-wrk", action="store_true", help="use the built-in load generator even if wrk is there")
    parser.add_argument("--only", choices=("speed", "memory"))
    options = parser.parse_args()
    good = True
    if options.only != "memory":
        with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
            script.write(f"wrk.method = 'POST'\nwrk.body = '{BODY.decode()}'\n")
            script.write("wrk.headers['Content-Type'] = 'application/json'\n")
            script.flush()
            wrk = None if options.no_wrk or shutil.which("wrk") is None else script.name
            print("load by", "wrk" if wrk else "the built-in generator", f"{options.rounds} rounds")
            good = compare(options.rounds, min(options.seconds, 30), options.connections, wrk)
    if options.only != "speed":
        good = memory() and good
    print("\nall goals are met" if good else "\nnot all goals are met")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
