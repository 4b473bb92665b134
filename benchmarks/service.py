"""A process of the service to measure, and a minimal HTTP client to load it."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Service:
    """``usersvc serve`` on a free port of the loopback interface, from its first response to its end."""

    def __init__(self, database: Path, *, cost: int, settings: Mapping[str, str] | None = None) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith("USERSVC_")},
            "USERSVC_PORT": str(self.port),
            "USERSVC_DATABASE_URL": f"sqlite:///{database}",
            "USERSVC_BCRYPT_COST": str(cost),
            "USERSVC_REGISTER_RATE": "",
            # Writing log lines would be measured too.
            "USERSVC_LOG_LEVEL": "warning",
            **(settings or {}),
        }

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "usersvc",
            "serve",
            env=self._environment,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        while not await self._responds():  # noqa: ASYNC110  # another process can only be polled
            await asyncio.sleep(0.01)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        await self._process.wait()

    def resident_mebibytes(self) -> float:
        """The resident memory of the process."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        [kibibytes] = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")]
        return int(kibibytes) / 1024

    def workers(self) -> list[int]:
        """The processes that respond: the children, if there are several."""
        children = Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
        several = self._environment.get("USERSVC_WORKERS", "1") != "1"
        # The first child is not a worker, but the resource tracker of multiprocessing.
        return [int(child) for child in children[1:]] if several else [self._process.pid]

    async def _responds(self) -> bool:
        if self._process.returncode is not None:
            raise RuntimeError("the service did not start")
        try:
            async with connections(self.port, 1) as [streams]:
                return await request(*streams, "GET", "/livez") == 200
        except OSError:
            return False


@asynccontextmanager
async def connections(port: int, how_many: int) -> AsyncIterator[list[Streams]]:
    """Open connections to loopback."""
    opened = [await asyncio.open_connection("127.0.0.1", port) for _ in range(how_many)]
    try:
        yield opened
    finally:
        for _, writer in opened:
            writer.close()
            await writer.wait_closed()


async def request(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, method: str, path: str, body: bytes = b""
) -> int:
    """Send a request over an open connection, and return the status of the response."""
    writer.write(
        f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    head = (await reader.readuntil(b"\r\n\r\n")).lower()
    length = int(head.partition(b"content-length:")[2].partition(b"\r\n")[0])
    await reader.readexactly(length)
    return int(head.split(b" ", 2)[1])
