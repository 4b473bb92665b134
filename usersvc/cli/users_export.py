"""``usersvc users export``: writes everybody down, for another system or another usersvc."""

import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from usersvc.cli.exit_codes import Failure
from usersvc.cli.formats import FORMATS, Format, format_of
from usersvc.cli.output import progress_bar, say

if TYPE_CHECKING:
    from usersvc.cli.writer import Writer
    from usersvc.config import Settings

STDOUT = Path("-")


@click.command(name="export", short_help="Write everybody to a CSV or NDJSON file.")
@click.argument("file", type=click.Path(readable=False, path_type=Path), default=STDOUT)
@click.option(
    "--format", "chosen", type=click.Choice(FORMATS), help="By default what the file's name ends with, or ndjson."
)
@click.option(
    "--with-password-hashes", is_flag=True, help="So that the file can be imported. Whoever has it can guess."
)
def command(file: Path, *, chosen: str | None, with_password_hashes: bool) -> None:
    """Write everybody to FILE (by default standard output): id, email, age, time of registration.

    FILE must not exist yet; it appears when it is whole, for its owner alone. Who registers meanwhile is in it or not.
    In CSV, an apostrophe stands before what a spreadsheet would take for a formula; `usersvc users import` takes it off
    again.

    \b
    Examples:
      usersvc users export users.csv
      usersvc users export --with-password-hashes users.ndjson
      usersvc users export | gzip > users.ndjson.gz
    """
    from usersvc.bootstrap import settings_or_exit
    from usersvc.cli.atomic_file import atomic_file
    from usersvc.cli.signals import Interruption
    from usersvc.cli.stores import storage_failures
    from usersvc.cli.writer import Writer

    to_file = file != STDOUT
    if not to_file and sys.stdout is None:
        raise Failure("standard output is closed")
    form = format_of(file, chosen if to_file else chosen or Format.NDJSON)
    settings = settings_or_exit()
    if with_password_hashes:
        say("usersvc: whoever reads this can try passwords on the hashes: keep it as safe as the database")
    writer = Writer(form, with_password_hashes=with_password_hashes)
    with ExitStack() as stack:
        interruption = stack.enter_context(Interruption())
        stack.enter_context(storage_failures())
        stream: BinaryIO = sys.stdout.buffer
        if to_file:
            stream = stack.enter_context(stack.enter_context(atomic_file(file)).open("wb"))
        exported = _run(settings, stream, writer, to_file=to_file, heed=interruption.heed)
        stream.flush()
    if to_file:
        print(f"exported {exported} to {file}")


def _run(settings: "Settings", stream: BinaryIO, writer: "Writer", *, to_file: bool, heed: Callable[[], None]) -> int:
    """Write everybody; gives how many that were."""
    import asyncio

    from usersvc.application.user_import import all_records
    from usersvc.cli.stores import opened, total

    async def write() -> int:
        exported = 0
        async with opened(settings) as store:
            stream.write(writer.head())
            users = await total(store.archive) if to_file else None
            with progress_bar("exporting", users, hidden=not to_file) as bar:
                async for records in all_records(store.archive):
                    stream.write(writer.body(records))
                    exported += len(records)
                    bar.update(len(records))
                    heed()
        return exported

    return asyncio.run(write())
