"""``usersvc users export``."""

import sys
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import BinaryIO

import click

from usersvc.application.keyset import in_pages
from usersvc.cli.atomic_file import atomic_file
from usersvc.cli.output import print_message
from usersvc.cli.signals import delayed_signals, interruptible
from usersvc.cli.stores import open_store
from usersvc.cli.user_files import FORMATS, NDJSON, PUBLIC, encode, format_of, head
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
    import asyncio

    form = chosen or (NDJSON if file == STDOUT else format_of(file))
    settings = Settings.from_environment()
    names = [*PUBLIC]
    if with_password_hashes:
        names.append("password_hash")
        print_message("usersvc: the export has password hashes: protect it like the database")

    async def write(stream: BinaryIO) -> int:
        async with open_store(settings) as store:
            stream.write(head(form, names))
            pages = in_pages(store.archive.users, lambda records: records[-1].position if records else None)
            hidden = file == STDOUT or not sys.stderr.isatty()
            with click.progressbar(count(), label="exporting", show_pos=True, file=sys.stderr, hidden=hidden) as bar:
                async for records in pages:
                    with interruptible():
                        stream.write(encode(form, names, records))
                    bar.update(len(records))
        return bar.pos

    with ExitStack() as stack:
        stack.enter_context(delayed_signals())
        if file == STDOUT:
            asyncio.run(write(sys.stdout.buffer))
            return
        stream = stack.enter_context(stack.enter_context(atomic_file(file)).open("wb"))
        exported = asyncio.run(write(stream))
    print(f"exported {exported} to {file}")
