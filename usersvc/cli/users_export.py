"""``usersvc users export``."""

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import click

from usersvc.cli.exit_codes import Failure
from usersvc.cli.formats import FORMATS, Format, format_of
from usersvc.cli.output import print_message, progress_bar

if TYPE_CHECKING:
    from usersvc.cli.signals import StopSignals
    from usersvc.cli.writer import Writer
    from usersvc.config import Settings

STDOUT = Path("-")


@click.command(name="export", short_help="Write all users to a CSV or NDJSON file.")
@click.argument("file", type=click.Path(readable=False, path_type=Path), default=STDOUT)
@click.option("--format", "chosen", type=click.Choice(FORMATS), help="By default that of the file name, or ndjson.")
@click.option(
    "--with-password-hashes", is_flag=True, help="Include them, so that the file can be imported. Keep it secret."
)
def command(file: Path, *, chosen: str | None, with_password_hashes: bool) -> None:
    """Write all users to FILE (by default standard output): id, email, age, time of registration.

    FILE must not exist; it is created when the export is complete, readable by its owner only. Users who register
    during the export may be missing. In CSV, an apostrophe is put before what a spreadsheet would run as a formula;
    `usersvc users import` removes it.

    \b
    Examples:
      usersvc users export users.csv
      usersvc users export --with-password-hashes users.ndjson
      usersvc users export | gzip > users.ndjson.gz
    """
    from usersvc.bootstrap import settings_or_exit
    from usersvc.cli.atomic_file import atomic_file
    from usersvc.cli.signals import StopSignals
    from usersvc.cli.stores import storage_failures
    from usersvc.cli.writer import Writer

    to_file = file != STDOUT
    if not to_file and sys.stdout is None:
        raise Failure("standard output is closed")
    form = format_of(file, chosen if to_file else chosen or Format.NDJSON)
    settings = settings_or_exit()
    if with_password_hashes:
        print_message("usersvc: the export has password hashes: protect it like the database")
    writer = Writer(form, with_password_hashes=with_password_hashes)
    with ExitStack() as stack:
        signals = stack.enter_context(StopSignals())
        stack.enter_context(storage_failures())
        stream: BinaryIO = sys.stdout.buffer
        if to_file:
            stream = stack.enter_context(stack.enter_context(atomic_file(file)).open("wb"))
        exported = _run(settings, stream, writer, to_file=to_file, signals=signals)
        stream.flush()
    if to_file:
        print(f"exported {exported} to {file}")


def _run(settings: "Settings", stream: BinaryIO, writer: "Writer", *, to_file: bool, signals: "StopSignals") -> int:
    """Write all users and return their number."""
    import asyncio

    from usersvc.application.user_import import all_records
    from usersvc.cli.stores import count_users, open_store

    async def write() -> int:
        exported = 0
        async with open_store(settings) as store:
            stream.write(writer.head())
            users = await count_users(store.archive) if to_file else None
            with progress_bar("exporting", users, hidden=not to_file) as bar:
                async for records in all_records(store.archive):
                    stream.write(writer.body(records))
                    exported += len(records)
                    bar.update(len(records))
                    signals.raise_if_stopped()
        return exported

    return asyncio.run(write())
