"""``usersvc users import``."""

import json
import os
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import TextIO

import click

from usersvc.application import user_import
from usersvc.application.errors import StorageUnavailable
from usersvc.application.user_import import Outcome, UserImport
from usersvc.cli.output import SOME_REJECTED, Failure, print_message
from usersvc.cli.reader import Record, Source, line_numbers, read_records
from usersvc.cli.signals import Stopped, delayed_signals, interruptible
from usersvc.cli.stores import open_store
from usersvc.cli.user_files import FORMATS, format_of
from usersvc.config import Settings
from usersvc.domain.errors import ValidationFailed, Violation
from usersvc.setting_parsers import MemoryDatabase, SqliteDatabase

MAX_SHOWN_REJECTIONS = 10


@click.command(name="import", short_help="Import users from a CSV or NDJSON file.")
@click.argument("file", type=click.Path(readable=False, path_type=Path))
@click.option("--format", "chosen", type=click.Choice(FORMATS), help="By default that of the file name.")
@click.option("--dry-run", is_flag=True, help="Check the file, also against the stored users, without storing.")
@click.option(
    "--rejected",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write all rejected lines with numbers and reasons to this file, as NDJSON; it is overwritten.",
)
@click.option("--ignore-unknown", is_flag=True, help="Ignore unknown columns.")
def command(file: Path, *, chosen: str | None, dry_run: bool, rejected: Path | None, ignore_unknown: bool) -> int:
    """Import the users in FILE (- is standard input): CSV whose first line names the columns, or NDJSON.

    \b
    email          as the user typed it
    age            in years, by the same rule as in registrations
    password_hash  bcrypt of another system ($2a$, $2b$, $2y$), cost 4 to 16, or as `users export` wrote it
    id             optional: a UUID; by default a new one
    registered_at  optional: a time as in 2026-01-31T09:30:00Z; by default now

    No mails are sent. FILE is UTF-8. A missing database file is created. After an interruption, even a crash, run the
    import again: users who exist with the same data are counted as already there. A user whose mailbox or id belongs to
    another user is rejected.

    The exit code is 3 if lines were rejected; all others are stored.

    \b
    Examples:
      usersvc users import --dry-run --rejected rejected.ndjson users.csv
      usersvc users import users.csv
      zcat users.ndjson.gz | usersvc users import --format ndjson -
    """
    import asyncio

    form = chosen or format_of(file)
    settings = Settings.from_environment()
    with ExitStack() as stack:
        stack.enter_context(delayed_signals())
        stream = stack.enter_context(click.open_file(file, "rb"))
        report = _Report(dry_run, None if rejected is None else stack.enter_context(_open_rejected(rejected, file)))
        size = file.stat().st_size if file.is_file() else 0
        hidden = not size or not sys.stderr.isatty()
        bar = stack.enter_context(click.progressbar(length=size, label="importing", file=sys.stderr, hidden=hidden))
        source = Source(stream)
        records = read_records(source, form, ignore_unknown=ignore_unknown)

        async def work() -> None:
            async with _open_import(settings, dry_run=dry_run) as importing:
                is_complete = False
                while not is_complete:
                    batch: list[Record] = []
                    try:
                        with interruptible():
                            batch.extend(islice(records, user_import.STORED_AT_ONCE))
                        is_complete = not batch
                    finally:
                        # Also the records before one that cannot be read.
                        if batch:
                            report.add(batch, await importing.take([record.row for record in batch]))
                    bar.update(source.bytes_read - bar.pos)

        try:
            asyncio.run(work())
        except Stopped as error:
            raise Failure(f"{error}; {report}; run the command again to import the rest", error.exit_code) from None
        except (Failure, StorageUnavailable) as error:
            raise Failure(f"{error}; {report}" if report.counts else str(error)) from None
        finally:
            report.print_rejections()
    print(report)
    return SOME_REJECTED if report.counts["rejected"] else 0


@asynccontextmanager
async def _open_import(settings: Settings, *, dry_run: bool) -> AsyncIterator[UserImport]:
    """The use case, on the store of the settings; a dry run adds the users to a store in memory instead."""
    from usersvc.bootstrap import open_storage  # slow to import

    async with AsyncExitStack() as stack:
        stores = []
        database = settings.database
        # A dry run does not create the file.
        if not (dry_run and isinstance(database, SqliteDatabase) and not database.path.exists()):
            stores.append(await stack.enter_async_context(open_store(settings, create=True)))
        if dry_run:
            in_memory = open_storage(replace(settings, database=MemoryDatabase()))
            stores.append(await stack.enter_async_context(in_memory))
        yield UserImport(stores[-1], archives=[store.archive for store in stores])


class _Report:
    def __init__(self, dry_run: bool, file: TextIO | None) -> None:
        self._would_be = "would be " if dry_run else ""
        self._file = file
        self._shown: list[str] = []
        self.counts: Counter[str] = Counter()

    def add(self, batch: Sequence[Record], outcomes: Sequence[Outcome]) -> None:
        for record, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, ValidationFailed):
                self._reject(record, outcome.violations)
            else:
                self.counts[outcome] += 1
        if self._file is not None:
            self._file.flush()

    def _reject(self, record: Record, violations: Sequence[Violation]) -> None:
        self.counts["rejected"] += 1
        if len(self._shown) < MAX_SHOWN_REJECTIONS:
            # Never the values: one may be a hash.
            codes = ", ".join(f"{each.field} {each.code}" for each in violations)
            self._shown.append(f"{line_numbers(record.first, record.last)}: {codes}")
        if self._file is not None:
            reasons = [asdict(violation) for violation in violations]
            document = {"line": record.first, "last_line": record.last, "reasons": reasons, "text": record.text}
            self._file.write(f"{json.dumps(document, ensure_ascii=False)}\n")

    def print_rejections(self) -> None:
        for text in self._shown:
            print_message(text)
        if more := self.counts["rejected"] - len(self._shown):
            print_message(f"and {more} more" + ("" if self._file else "; --rejected FILE writes all of them"))

    def __str__(self) -> str:
        imported, there, rejected = (self.counts[each] for each in ("imported", "already there", "rejected"))
        return f"{imported} {self._would_be}imported, {there} already there, {rejected} {self._would_be}rejected"


def _open_rejected(file: Path, source: Path) -> TextIO:
    """Open a file that only its owner can read: whole lines are written to it, with hashes."""
    if file.is_file():
        if source.exists() and file.samefile(source):
            raise Failure("--rejected would replace the file that is imported")
        file.chmod(0o600)
    return open(file, "w", encoding="utf-8", opener=lambda path, flags: os.open(path, flags, 0o600))
