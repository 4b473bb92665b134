"""``usersvc serve``: runs the service under uvicorn."""

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
from usersvc.adapters.telemetry.prometheus import DIRECTORY, delete_old_metrics
from usersvc.application.errors import StorageUnavailable
from usersvc.bootstrap import check_storage, settings_or_exit
from usersvc.config import Settings
from usersvc.logs import logging_config
from usersvc.server.http_protocol import KEEP_ALIVE

GRACEFUL_TIMEOUT = 5
"""Seconds that a stop waits for running requests.

Together with the stop of mail delivery, less than the ten seconds after which container engines kill a process.
"""

WORKER_TIMEOUT = 10
"""Seconds without a sign of life, also during its start, after which a worker is replaced.

On a busy machine, the imports alone may take longer than uvicorn's default of five.
"""

OTHER_FILES = 256
"""The maximum number of open files besides connections: database, mail servers, logs."""


def serve() -> None:
    """Run the service until it is stopped."""
    settings = settings_or_exit()
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(settings.host, 0, type=socket.SOCK_STREAM)
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except (OSError, UnicodeError):
        _exit("USERSVC_HOST accepts an address or a name of this machine.", code=2)
    if settings.workers > 1:
        # uvicorn exits with 0 if its workers cannot start, so the storage is checked first.
        try:
            asyncio.run(check_storage(settings))
        except StorageUnavailable as error:
            _exit(str(error), code=STARTUP_FAILURE)
    port = settings.port or "<a free port>"
    base = f"http://{f'[{settings.host}]' if ':' in settings.host else settings.host}:{port}"
    # Flushed, so that it is not lost if the process is killed. A closed standard output is not a reason to fail.
    with suppress(OSError):
        print(
            f"usersvc {usersvc.__version__}",
            f"  service   {base}",
            f"  docs      {base}/docs",
            f"  database  {settings.database}",
            sep="\n",
            flush=True,
        )
    _raise_file_limit(settings.max_connections)
    # After a graceful stop uvicorn raises the signal again for the previous handler: this is not a failure.
    signal.signal(signal.SIGTERM, lambda *_: _exit_after_stop())
    with _metrics_folder(settings.workers):
        _run(settings)


@contextmanager
def _metrics_folder(workers: int) -> Iterator[None]:
    """Set the folder in which several workers share metrics; a single one needs none, but uses a configured one."""
    configured = os.environ.get(DIRECTORY)
    if configured is not None:
        try:
            if not configured:
                # An empty path is the current folder.
                raise FileNotFoundError
            delete_old_metrics(Path(configured))
        except OSError:
            _exit(f"{DIRECTORY} accepts an existing folder that is writable.", code=2)
    if workers == 1 or configured is not None:
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
        # By name: a worker must import objects that it is passed before it can show that it is alive.
        http="usersvc.server.http_protocol:HardenedProtocol",
        timeout_keep_alive=KEEP_ALIVE,
        # The protocol implements it.
        limit_concurrency=settings.max_connections,
        ws="none",
        lifespan="on",
        interface="asgi3",
        log_config=logging_config(settings.log_level, settings.log_format),
        access_log=False,
        server_header=False,
        # USERSVC_TRUSTED_PROXIES decides about X-Forwarded-For, not uvicorn's environment variable.
        proxy_headers=False,
        timeout_graceful_shutdown=GRACEFUL_TIMEOUT,
        timeout_worker_healthcheck=WORKER_TIMEOUT,
    )


def _raise_file_limit(connections: int) -> None:
    """Raise the limit of open files to what the connections need, as far as the system allows."""
    if sys.platform == "win32":
        return
    import resource  # POSIX only

    wanted = connections + OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if hard != resource.RLIM_INFINITY and hard < wanted:
        print(f"usersvc: the limit of {hard} open files is too low for {connections} connections", file=sys.stderr)


def _exit(reason: str, *, code: int) -> NoReturn:
    print(f"usersvc: {reason}", file=sys.stderr)
    raise SystemExit(code)


def _exit_after_stop() -> NoReturn:
    """End the process after a graceful stop, even if a thread hangs in a DNS look-up."""
    force_exit = threading.Timer(1, os._exit, [0])
    force_exit.daemon = True
    force_exit.start()
    sys.exit(0)
