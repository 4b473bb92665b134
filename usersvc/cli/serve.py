"""What ``usersvc serve`` does: runs the service under uvicorn."""

import asyncio
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

import uvicorn
from uvicorn.config import STARTUP_FAILURE

import usersvc
from usersvc.adapters.telemetry.prometheus import DIRECTORY, begin_anew
from usersvc.application.errors import StorageUnavailable
from usersvc.bootstrap import check_storage, settings_or_exit
from usersvc.config import Settings
from usersvc.logs import logging_config
from usersvc.server.http_protocol import KEEP_ALIVE

GRACE = 5
"""How long a stop waits for requests in hand, in seconds.

With what the notifications take, this stays within the ten that container engines wait before they kill.
"""

SIGN_OF_LIFE = 10
"""In how many seconds a worker has to show that it lives, from its start on, or it is replaced.

A machine that is busy may need more than uvicorn's five for the imports alone; and as long as this may pass before a
worker that was killed is missed.
"""

FILES_BESIDE = 256
"""How many files are open beside connections, at most: the database, mail servers, logs."""


def serve() -> None:
    """Run the service under uvicorn until it is told to stop."""
    settings = settings_or_exit()
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(settings.host, 0, type=socket.SOCK_STREAM)
        with socket.socket(family, kind, protocol) as tried:
            tried.bind(address)
    except (OSError, UnicodeError):
        _end("USERSVC_HOST accepts an address or a name of this machine.", code=2)
    if settings.workers > 1:
        # uvicorn ends without a failure when its workers cannot start, so what may fail is tried first.
        try:
            asyncio.run(check_storage(settings))
        except StorageUnavailable as error:
            _end(str(error), code=STARTUP_FAILURE)
    port = settings.port or "<a free port>"
    base = f"http://{f'[{settings.host}]' if ':' in settings.host else settings.host}:{port}"
    # Flushed, so that it is not lost in a buffer when the process is killed; nothing to fail for when it cannot be.
    with suppress(OSError):
        print(
            f"usersvc {usersvc.__version__}",
            f"  service   {base}",
            f"  docs      {base}/docs",
            f"  database  {settings.database}",
            sep="\n",
            flush=True,
        )
    _let_files_be_open(settings.max_connections)
    # After a graceful stop uvicorn raises the signal again, for whoever had it before: that is not a failure.
    signal.signal(signal.SIGTERM, lambda *_: _end_in_order())
    with _shared_figures(settings.workers):
        _run(settings)


@contextmanager
def _shared_figures(workers: int) -> Iterator[None]:
    """A folder in which several workers count together; one alone counts in its memory, if it is not told otherwise."""
    told = os.environ.get(DIRECTORY)
    if told is not None:
        try:
            if not told:
                # It would be this folder.
                raise FileNotFoundError
            begin_anew(Path(told))
        except OSError:
            _end(f"{DIRECTORY} accepts a folder that is there and can be written to.", code=2)
    if workers == 1 or told is not None:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="usersvc-metrics-") as folder:
        os.environ[DIRECTORY] = folder
        yield


def _run(settings: Settings) -> None:
    uvicorn.run(
        "usersvc.bootstrap:create_asgi_app",
        factory=True,
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        loop="asyncio" if sys.platform == "win32" else "uvloop",
        # By name: what a worker is handed it has to import before it can show that it lives.
        http="usersvc.server.http_protocol:HardenedProtocol",
        timeout_keep_alive=KEEP_ALIVE,
        # The protocol's own: see there.
        limit_concurrency=settings.max_connections,
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=logging_config(settings.log_level, settings.log_format),
        access_log=False,
        server_header=False,
        # Whose X-Forwarded-For counts is a setting of its own, not uvicorn's environment variable.
        proxy_headers=False,
        timeout_graceful_shutdown=GRACE,
        timeout_worker_healthcheck=SIGN_OF_LIFE,
    )


def _let_files_be_open(connections: int) -> None:
    """Raise what the system lets this process open to what it needs, as far as it may."""
    if sys.platform == "win32":
        return
    import resource  # there is none elsewhere

    wanted = connections + FILES_BESIDE
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if hard != resource.RLIM_INFINITY and hard < wanted:
        print(f"usersvc: the system lets it open {hard} files: too few for {connections} connections", file=sys.stderr)


def _end(reason: str, *, code: int) -> NoReturn:
    print(f"usersvc: {reason}", file=sys.stderr)
    raise SystemExit(code)


def _end_in_order() -> NoReturn:
    """End the process, now that everything is closed, even if a thread hangs in a look-up of a name."""
    last_resort = threading.Timer(1, os._exit, [0])
    last_resort.daemon = True
    last_resort.start()
    sys.exit(0)
