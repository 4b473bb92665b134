"""The commands of the console script ``usersvc``."""

import argparse
import asyncio
import io
import json
import os
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import uvicorn
from uvicorn.config import STARTUP_FAILURE

import usersvc
from usersvc.adapters import sqlite_file
from usersvc.adapters.memory import InMemoryUsers
from usersvc.adapters.prometheus import DIRECTORY
from usersvc.adapters.sqlite import SqliteUsers
from usersvc.application.ports import Outbox, OutboxEntry, StorageUnavailable, timestamp, utc_now
from usersvc.bootstrap import check_storage, create_users, settings_or_exit
from usersvc.config import Settings, SqliteDatabase
from usersvc.logs import logging_config
from usersvc.server import KEEP_ALIVE, HardenedProtocol

if TYPE_CHECKING:
    from usersvc.adapters.postgres import PostgresUsers

GRACE = 5
"""How long a stop waits for requests in hand, in seconds.

With what the notifications take, this stays within the ten that container engines wait before they kill.
"""

FILES_BESIDE = 256
"""How many files are open beside connections, at most: the database, mail servers, logs."""

SHOWN_FINDINGS = 5
"""How much damage one line tells of."""


class Failure(Exception):
    """A command could not do its work; the text says why, in one line."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the arguments name.

    Raises:
        SystemExit: with code 1 when the command fails, 2 for wrong arguments or a bad setting, with uvicorn's own for
            a failed start.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What a terminal or pipe cannot take is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
    chosen = _parser().parse_args(arguments)
    try:
        chosen.run(chosen)
        if sys.stdout is not None:
            sys.stdout.flush()
    except (Failure, StorageUnavailable) as error:
        print(f"usersvc: {error}", file=sys.stderr)
        raise SystemExit(1) from None
    except BrokenPipeError:
        # Whoever reads has seen enough, as `head` does. What is still in the buffer must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(1) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="usersvc", description=usersvc.__doc__)
    parser.add_argument("--version", action="version", version=f"%(prog)s {usersvc.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serving = commands.add_parser(
        "serve",
        help="run the service",
        description="Run the service until it is stopped. USERSVC_* variables, or a file .env here, set it up.",
    )
    serving.set_defaults(run=lambda _: serve())

    outbox = commands.add_parser("outbox", help="look after mails that are still to be sent")
    on_outbox = outbox.add_subparsers(required=True, metavar="COMMAND")
    listing = on_outbox.add_parser("list", help="everything that waits or is set aside, a line each")
    listing.set_defaults(run=_on_outbox(_list))
    showing = on_outbox.add_parser("show", help="one entry, as JSON")
    showing.add_argument("id", type=int)
    showing.set_defaults(run=_on_outbox(_show))
    retrying = on_outbox.add_parser("retry", help="send an entry now, also one that is set aside")
    which = retrying.add_mutually_exclusive_group(required=True)
    which.add_argument("id", type=int, nargs="?")
    which.add_argument("--all", action="store_true", help="every entry that is set aside")
    retrying.set_defaults(run=_on_outbox(_retry))

    database = commands.add_parser("db", help="look after the database file")
    on_database = database.add_subparsers(required=True, metavar="COMMAND")
    saving = on_database.add_parser("backup", help="copy it as it is at one moment, while the service runs")
    saving.add_argument("file", type=Path, help="must not exist yet")
    saving.set_defaults(run=lambda chosen: _backup(chosen.file))
    checking = on_database.add_parser("check", help="look for damage")
    checking.set_defaults(run=lambda _: _check())
    return parser


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
    """A folder in which several workers count together; one alone counts in its memory."""
    if workers == 1 or DIRECTORY in os.environ:
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
        http=HardenedProtocol,
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
    )


def _let_files_be_open(connections: int) -> None:
    """Raise what the system lets this process open to what it needs, as far as it may."""
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415  # there is none elsewhere

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


def _database() -> Path:
    database = settings_or_exit().database
    if not isinstance(database, SqliteDatabase):
        raise Failure("USERSVC_DATABASE_URL names no file, and this command works on one")
    if not database.path.exists():
        raise Failure(f"there is no database at {database}")
    return database.path


def _users() -> "SqliteUsers | PostgresUsers":
    users = create_users(settings_or_exit())
    # A file is not made where there is none.
    return SqliteUsers(_database()) if isinstance(users, InMemoryUsers | SqliteUsers) else users


def _on_outbox(
    work: Callable[[Outbox, argparse.Namespace], Coroutine[Any, Any, None]],
) -> Callable[[argparse.Namespace], None]:
    async def opened(chosen: argparse.Namespace) -> None:
        async with _users() as users:
            await work(users.outbox, chosen)

    return lambda chosen: asyncio.run(opened(chosen))


async def _list(outbox: Outbox, _: argparse.Namespace) -> None:
    entries = await outbox.entries()
    for entry in entries:
        due = "set aside" if entry.due_at is None else timestamp(entry.due_at)
        print(entry.id, due, f"attempts={entry.attempts}", entry.event.user_id, entry.reason or "", sep="\t")
    if not entries:
        print("nothing waits to be sent", file=sys.stderr)


async def _show(outbox: Outbox, chosen: argparse.Namespace) -> None:
    entry = await _entry(outbox, chosen.id)
    document = {
        "id": entry.id,
        "user_id": str(entry.event.user_id),
        "email": entry.event.email,
        "registered_at": timestamp(entry.event.occurred_at),
        "attempts": entry.attempts,
        "due_at": None if entry.due_at is None else timestamp(entry.due_at),
        "set_aside": entry.due_at is None,
        "reason": entry.reason,
    }
    # Escaped where the terminal or pipe cannot take it as it is.
    text = json.dumps(document, indent=2, ensure_ascii=False)
    print(text if _can_print(text) else json.dumps(document, indent=2))


def _can_print(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


async def _entry(outbox: Outbox, entry_id: int) -> OutboxEntry:
    found = [entry for entry in await outbox.entries() if entry.id == entry_id]
    if not found:
        raise Failure(f"the outbox has no entry {entry_id}")
    return found[0]


async def _retry(outbox: Outbox, chosen: argparse.Namespace) -> None:
    if chosen.all:
        wanted = [entry.id for entry in await outbox.entries() if entry.due_at is None]
    else:
        wanted = [(await _entry(outbox, chosen.id)).id]
    retried = [await outbox.retry(entry_id, now=utc_now()) for entry_id in wanted]
    if not (chosen.all or any(retried)):
        raise Failure(f"entry {chosen.id} is being sent just now")
    # The service notices by itself: PostgreSQL tells it, and it looks every now and then.
    print(f"{sum(retried)} to be sent again")


def _backup(target: Path) -> None:
    if target.exists():
        raise Failure(f"{target} exists already")
    sqlite_file.backup(_database(), target)
    print(f"saved to {target}")


def _check() -> None:
    damage = sqlite_file.damage(_database())
    if damage:
        # SQLite writes some findings over several lines.
        found = "; ".join(" ".join(finding.split()) for finding in damage[:SHOWN_FINDINGS])
        more = f"; and {len(damage) - SHOWN_FINDINGS} more" if len(damage) > SHOWN_FINDINGS else ""
        raise Failure(f"the database is not as it should be: {found}{more}")
    print("ok")
