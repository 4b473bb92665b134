"""``usersvc db copy``: moves everything from one database to another, of whichever kind."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

import click

from usersvc.commands.outcome import Failure, Stopped
from usersvc.commands.output import progress_bar
from usersvc.commands.stores import total

if TYPE_CHECKING:
    from usersvc.application.copying import Comparison, Tally
    from usersvc.application.ports import CompleteArchive
    from usersvc.config import Settings

T = TypeVar("T")


@click.command(name="copy", short_help="Copy everything to another database, SQLite or PostgreSQL.")
@click.argument("source", metavar="SOURCE_URL")
@click.argument("target", metavar="TARGET_URL")
@click.option("--verify", is_flag=True, help="Copy nothing, only tell whether both are the same.")
def command(source: str, target: str, *, verify: bool) -> None:
    """Copy users, mails that are still to be sent and idempotency keys from one database to another.

    URLs are written as in USERSVC_DATABASE_URL. Since others can read command lines, and URLs may hold passwords, each
    may also be @FILE, whose text it is, or env:NAME, a variable of the environment or of .env.

    The source is only read, and the service may run on it. No service may run on the target, which is empty at first.
    A copy that was stopped, even by a crash, goes on where it was when the same command is run again; one that was
    finished catches up: who was removed from the source goes from the target, a mail that was sent meanwhile is not
    sent again. At the end both are read, and their counts and checksums compared; the exit code is 1 when they differ,
    as they do when the source has changed meanwhile. No service starts on a copy before they were the same once.

    \b
    Copy while the service runs, stop it, copy the rest, start it on the target:
      usersvc db copy sqlite:///usersvc.db @target-url.txt
      systemctl stop usersvc
      usersvc db copy sqlite:///usersvc.db @target-url.txt
      USERSVC_DATABASE_URL_FILE=target-url.txt usersvc serve
    """
    from usersvc.config import SqliteDatabase

    one, other = _settings("SOURCE_URL", source), _settings("TARGET_URL", target)
    files = [each.database.path.resolve() for each in (one, other) if isinstance(each.database, SqliteDatabase)]
    if len(files) > len({*files}):
        raise Failure("source and target are the same file")
    if verify:
        _run(one, other, _compared, create=False)
    else:
        _run(one, other, _copied, create=True)


def _settings(name: str, text: str) -> "Settings":
    """Settings with the database that an argument names.

    Raises:
        click.UsageError: it names none; the text never repeats the argument.
    """
    from usersvc.config import BadSetting, MemoryDatabase, Settings

    try:
        settings = Settings.from_environment({"USERSVC_DATABASE_URL": _url(name, text)})
    except BadSetting as error:
        raise click.UsageError(str(error).replace("USERSVC_DATABASE_URL", name)) from None
    if isinstance(settings.database, MemoryDatabase):
        raise click.UsageError(f"{name} is memory://, which no other process than the service can look into.")
    return settings


def _url(name: str, text: str) -> str:
    """The URL that an argument is, or names."""
    import os
    from pathlib import Path

    from usersvc.config import stored

    url = text
    if text.startswith("env:"):
        url = (stored() | dict(os.environ)).get(text.removeprefix("env:"), "")
    elif text.startswith("@"):
        try:
            url = Path(text.removeprefix("@")).read_text("utf-8").removesuffix("\n").removesuffix("\r")
        except (OSError, ValueError):
            raise click.UsageError(f"{name} names a file that cannot be read.") from None
    if not url:
        # The default, a file in this folder, would be taken for it.
        raise click.UsageError(f"{name} is empty, or names what is empty.")
    return url


Work = Callable[["CompleteArchive", "CompleteArchive", Callable[[], None]], Awaitable[None]]


def _run(one: "Settings", other: "Settings", work: Work, *, create: bool) -> None:
    import asyncio

    from usersvc.commands.interruption import Interruption
    from usersvc.commands.stores import opened

    async def run(heed: Callable[[], None]) -> None:
        async with opened(one) as source, opened(other, create=create) as target:
            await work(source.archive, target.archive, heed)

    with Interruption() as interruption:
        asyncio.run(run(interruption.heed))


async def _copied(source: "CompleteArchive", target: "CompleteArchive", heed: Callable[[], None]) -> None:
    from usersvc.application.copying import NotACopy, copy

    done, users = 0, await total(source)

    def count(more: int) -> None:
        nonlocal done
        done += more

    try:
        with _progress("copying", users, count, heed) as advance:
            tallies = await copy(source, target, advance=advance)
    except NotACopy as error:
        raise Failure(str(error)) from None
    except Stopped as error:
        of_all = "" if users is None else f" of {users}"
        raise Stopped(
            error.signal_number,
            f"stopped; {done}{of_all} users are there; the same command again goes on from there",
        ) from None
    _tell(tallies)
    await _compared(source, target, heed)
    await target.end_copy()


async def _compared(source: "CompleteArchive", target: "CompleteArchive", heed: Callable[[], None]) -> None:
    from usersvc.application.copying import compare

    users = await total(source, target)
    try:
        with _progress("verifying", users, lambda _: None, heed) as advance:
            comparison = await compare(source, target, advance=advance)
    except Stopped as error:
        raise Stopped(error.signal_number, "stopped while both were compared") from None
    if not comparison.is_same:
        raise Failure(_differences(comparison))
    counts = ", ".join(f"{each.count} {each.name}" for each in comparison.source)
    print(f"source and target are the same: {counts}; SHA-256 {comparison.digest}")


def _tell(tallies: Sequence["Tally"]) -> None:
    for tally in tallies:
        print(f"{tally.name}: {tally.copied} copied, {tally.already_there} already there, {tally.removed} removed")


def _differences(comparison: "Comparison") -> str:
    """Which kinds differ, and by what."""
    found = []
    for ours, theirs in zip(comparison.source, comparison.target, strict=True):
        if ours.count != theirs.count:
            found.append(f"{ours.count} {ours.name} and {theirs.count}")
        elif ours != theirs:
            found.append(f"{ours.count} {ours.name} each, with different checksums")
    if comparison.gives_out_again:
        found.append("the target would give out positions again")
    return (
        f"source and target differ: {'; '.join(found)}. When a service runs on the source, stop it and copy again: "
        "that takes over what has changed"
    )


@contextmanager
def _progress(
    label: str, users: int | None, count: Callable[[int], None], heed: Callable[[], None]
) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal; gives what is to be told of how many were done, and ends the work when that is asked for."""
    with progress_bar(label, users) as bar:

        def advance(more: int) -> None:
            bar.update(more)
            count(more)
            heed()

        yield advance
