"""``usersvc serve``: runs the service under uvicorn."""

import asyncio
import math
import os
import resource
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import uvicorn
from uvicorn.config import STARTUP_FAILURE

import usersvc
from usersvc.adapters.telemetry.prometheus import DIRECTORY, delete_old_metrics
from usersvc.application.errors import StorageUnavailable
from usersvc.bootstrap import check_storage
from usersvc.cli.output import REFUSED, Failure, discard_output, print_message
from usersvc.config import Settings
from usersvc.logs import configure_logging
from usersvc.server.http_protocol import KEEP_ALIVE

GRACEFUL_TIMEOUT = 5
"""Seconds that a stop waits for requests: container engines kill a process after ten, and mail delivery stops later."""

WORKER_TIMEOUT = 10
"""Seconds without a sign of life after which a worker is replaced: imports may take longer than uvicorn's five."""

OTHER_FILES = 256
"""The maximum number of open files besides connections: database, mail servers, logs."""


def serve() -> None:
    """Run the service until it is stopped."""
    settings = Settings.from_environment()
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(settings.host, 0, type=socket.SOCK_STREAM)
        with socket.socket(family, kind, protocol) as probe:
            probe.bind(address)
    except (OSError, UnicodeError):
        raise Failure("USERSVC_HOST accepts an address or a name of this machine.", REFUSED) from None
    if settings.workers > 1:
        # uvicorn exits with 0 if its workers cannot start, so the storage is checked first.
        try:
            asyncio.run(check_storage(settings))
        except StorageUnavailable as error:
            raise Failure(str(error), STARTUP_FAILURE) from None
    port = settings.port or "<a free port>"
    base = f"http://{f'[{settings.host}]' if ':' in settings.host else settings.host}:{port}"
    try:
        # Flushed, so that it is not lost if the process is killed.
        print(f"usersvc {usersvc.__version__}\n  service   {base}\n  docs      {base}/docs")
        print(f"  database  {settings.database}", flush=True)
    except OSError:
        # A closed standard output is not a reason to fail.
        discard_output()
    _raise_file_limit(settings.max_connections)
    # After a graceful stop uvicorn raises the signal again for the previous handler: this is not a failure.
    signal.signal(signal.SIGTERM, lambda *_: _exit_after_stop())
    with _metrics_folder(settings.workers):
        # For the lines of uvicorn's parent process; in each worker, create_asgi_app does it.
        configure_logging(settings.log_level, settings.log_format)
        uvicorn.run(
            "usersvc.bootstrap:create_asgi_app",
            factory=True,
            host=settings.host,
            port=settings.port,
            workers=settings.workers,
            # By name: a worker must import objects that it is passed before it can show that it is alive.
            http="usersvc.server.http_protocol:HardenedProtocol",
            timeout_keep_alive=KEEP_ALIVE,
            # The protocol implements it.
            limit_concurrency=settings.max_connections,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            # USERSVC_TRUSTED_PROXIES decides about X-Forwarded-For, not uvicorn's environment variable.
            proxy_headers=False,
            timeout_graceful_shutdown=GRACEFUL_TIMEOUT,
            timeout_worker_healthcheck=WORKER_TIMEOUT,
        )


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
            raise Failure(f"{DIRECTORY} accepts an existing folder that is writable.", REFUSED) from None
    if workers == 1 or configured is not None:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="usersvc-metrics-") as folder:
        os.environ[DIRECTORY] = folder
        yield


def _raise_file_limit(connections: int) -> None:
    """Raise the limit of open files to what the connections need, as far as the system allows."""
    wanted = connections + OTHER_FILES
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = (math.inf if limit == resource.RLIM_INFINITY else limit for limit in limits)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (int(min(wanted, hard)), limits[1]))
    if hard < wanted:
        print_message(f"usersvc: the limit of {hard} open files is too low for {connections} connections")


def _exit_after_stop() -> NoReturn:
    """End the process after a graceful stop, even if a thread hangs in a DNS look-up."""
    force_exit = threading.Timer(1, os._exit, [0])
    force_exit.daemon = True
    force_exit.start()
    sys.exit(0)
