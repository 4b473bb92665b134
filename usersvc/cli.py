"""The commands of the console script ``usersvc``."""

import argparse
import asyncio
import signal
import socket
import sys
from collections.abc import Sequence
from typing import NoReturn

import uvicorn
from uvicorn.config import STARTUP_FAILURE

import usersvc
from usersvc.application.ports import StorageUnavailable
from usersvc.bootstrap import check_storage, settings_or_exit
from usersvc.logs import logging_config

GRACE = 8
"""How long a stop waits for requests in hand, in seconds; container engines wait ten before they kill."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the arguments name.

    Raises:
        SystemExit: with code 2 for wrong arguments or a bad setting, with uvicorn's for a failed start.
    """
    parser = argparse.ArgumentParser(prog="usersvc", description=usersvc.__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {usersvc.__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser(
        "serve", help="run the service", description="Run the service; USERSVC_* variables and .env set it up."
    )
    parser.parse_args(arguments)
    serve()


def serve() -> None:
    """Run the service under uvicorn until it is told to stop."""
    settings = settings_or_exit()
    try:
        socket.getaddrinfo(settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        _end("USERSVC_HOST accepts an address or a name of this machine.", code=2)
    if settings.workers > 1:
        # uvicorn ends without a failure when its workers cannot start, so what may fail is tried first.
        try:
            asyncio.run(check_storage(settings))
        except StorageUnavailable as error:
            _end(str(error), code=STARTUP_FAILURE)
    port = settings.port or "<a free port, see below>"
    base = f"http://{f'[{settings.host}]' if ':' in settings.host else settings.host}:{port}"
    sys.stdout.write(
        f"usersvc {usersvc.__version__}\n  service   {base}\n  docs      {base}/docs\n  database  {settings.database}\n"
    )
    sys.stdout.flush()
    # After a graceful stop uvicorn raises the signal again, for whoever had it before: that is not a failure.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    uvicorn.run(
        "usersvc.bootstrap:create_asgi_app",
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        loop="asyncio" if sys.platform == "win32" else "uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=logging_config(settings.log_level, settings.log_format),
        access_log=False,
        server_header=False,
        # Whose X-Forwarded-For counts is a setting of its own, not uvicorn's environment variable.
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE,
    )


def _end(reason: str, *, code: int) -> NoReturn:
    sys.stderr.write(f"usersvc: {reason}\n")
    raise SystemExit(code)
