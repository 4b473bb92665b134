"""``usersvc users import``."""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, TextIO

import click

from usersvc.cli.exit_codes import DONE, SOME_REJECTED, Failure, Stopped
from usersvc.cli.formats import FORMATS, Format, format_of
from usersvc.cli.output import print_message, progress_bar

if TYPE_CHECKING:
    import asyncio

    from usersvc.application.user_import import Outcome, UserImport
    from usersvc.cli.reader import Record
    from usersvc.config import Settings

MAX_SHOWN_REJECTIONS = 10
"""Rejected lines that are printed; --rejected writes all."""


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
    from usersvc.bootstrap import settings_or_exit

    form = format_of(file, chosen)
    settings = settings_or_exit()
    report = _Report(dry_run=dry_run)
    with ExitStack() as stack:
        stream = stack.enter_context(_readable(file))
        if rejected is not None:
            report.rejected = stack.enter_context(_writable(rejected, file))
        try:
            _run(settings, stream, form, report, ignore_unknown=ignore_unknown)
        except Stopped as error:
            raise Stopped(
                error.signal_number, f"stopped; {report.summary()}; run the command again to import the rest"
            ) from None
        except Failure as error:
            raise Failure(f"{error}; {report.summary()}" if report.counts else str(error)) from None
        finally:
            report.print_rejections()
    print(report.summary())
    return SOME_REJECTED if report.counts["rejected"] else DONE


def _run(settings: "Settings", stream: BinaryIO, form: Format, report: "_Report", *, ignore_unknown: bool) -> None:
    import asyncio

    from usersvc.cli.reader import Source, read_records
    from usersvc.cli.signals import StopSignals
    from usersvc.cli.stores import storage_failures

    source = Source(stream)
    with ExitStack() as stack:
        stack.enter_context(storage_failures())
        signals = stack.enter_context(StopSignals())
        # The file is read outside of the event loop, where a signal can interrupt it.
        loop = stack.enter_context(asyncio.Runner())
        importing = stack.enter_context(_import(loop, settings, dry_run=report.dry_run))
        bar = stack.enter_context(_progress(stream))
        batches = _batches(read_records(source, form, ignore_unknown=ignore_unknown))
        shown = 0
        while True:
            with signals.interruptible():
                batch = next(batches, None)
            if batch is None:
                break
            report.add(batch, loop.run(_import_batch(importing, batch)))
            bar(source.bytes_read - shown)
            shown = source.bytes_read
            signals.raise_if_stopped()


@contextmanager
def _import(loop: "asyncio.Runner", settings: "Settings", *, dry_run: bool) -> Iterator["UserImport"]:
    """The use case, on the store of the settings or on a dry run of it."""
    from dataclasses import replace

    from usersvc.application.user_import import DryRun, UserImport
    from usersvc.bootstrap import open_storage
    from usersvc.cli.stores import enter, open_store
    from usersvc.setting_parsers import MemoryDatabase, SqliteDatabase

    opening = open_store(settings, create=True)
    if dry_run and isinstance(settings.database, SqliteDatabase) and not settings.database.path.exists():
        # A dry run does not create it.
        opening = open_storage(replace(settings, database=MemoryDatabase()))
    with enter(loop, opening) as store:
        if dry_run:
            dry = DryRun(store.archive)
            yield UserImport(add_all=dry.add_all, find_matching=dry.find_matching)
        else:
            yield UserImport(add_all=store.add_all, find_matching=store.archive.find_matching)


def _batches(lines: Iterator["Record"]) -> Iterator[Sequence["Record"]]:
    from itertools import islice

    from usersvc.application.user_import import STORED_AT_ONCE

    while True:
        batch: list[Record] = []
        try:
            batch.extend(islice(lines, STORED_AT_ONCE))
        except Failure:
            # Import the lines before.
            if batch:
                yield batch
            raise
        if not batch:
            return
        yield batch


async def _import_batch(importing: "UserImport", batch: Sequence["Record"]) -> Sequence["Outcome"]:
    """Import a batch; the outcomes are in the order of its records."""
    from usersvc.application.user_import import ImportStatus, Outcome
    from usersvc.cli.row_schema import load_row
    from usersvc.domain.errors import ValidationFailed

    outcomes: dict[int, Outcome] = {}
    rows = {}
    for index, line in enumerate(batch):
        try:
            if line.violations:
                raise ValidationFailed(line.violations)
            rows[index] = load_row(line.values)
        except ValidationFailed as refused:
            outcomes[index] = Outcome(ImportStatus.REJECTED, refused.violations)
    outcomes |= zip(rows, await importing.take([*rows.values()]), strict=True)
    return [outcomes[index] for index in range(len(batch))]


class _Report:
    """The outcomes so far."""

    def __init__(self, *, dry_run: bool) -> None:
        self.dry_run = dry_run
        self.rejected: TextIO | None = None
        self.counts: Counter[str] = Counter()
        self._shown: list[str] = []

    def add(self, batch: Sequence["Record"], outcomes: Sequence["Outcome"]) -> None:
        """Add the outcomes of a batch."""
        for line, outcome in zip(batch, outcomes, strict=True):
            self.counts[outcome.status.value] += 1
            if outcome.violations:
                self._reject(line, outcome)
        if self.rejected is not None:
            self.rejected.flush()

    def _reject(self, line: "Record", outcome: "Outcome") -> None:
        if len(self._shown) < MAX_SHOWN_REJECTIONS:
            # Never the values: one may be a hash.
            reasons = ", ".join(f"{each.field} {each.code}" for each in outcome.violations)
            where = f"line {line.number}" if line.number == line.last else f"lines {line.number} to {line.last}"
            self._shown.append(f"{where}: {reasons}")
        if self.rejected is not None:
            import json

            reasons_in_full = [
                {"field": each.field, "code": each.code, "message": each.message} for each in outcome.violations
            ]
            document = {"line": line.number, "last_line": line.last, "reasons": reasons_in_full, "text": line.text}
            self.rejected.write(f"{json.dumps(document, ensure_ascii=False)}\n")

    def print_rejections(self) -> None:
        """Print the first rejected lines."""
        for text in self._shown:
            print_message(text)
        if self.counts["rejected"] > len(self._shown):
            more = self.counts["rejected"] - len(self._shown)
            print_message(f"and {more} more" + ("" if self.rejected else "; --rejected FILE writes all of them"))

    def summary(self) -> str:
        """The counts in one line."""
        would = "would be " if self.dry_run else ""
        return ", ".join(
            [
                f"{self.counts['imported']} {would}imported",
                f"{self.counts['already there']} already there",
                f"{self.counts['rejected']} {would}rejected",
            ]
        )


@contextmanager
def _progress(stream: BinaryIO) -> Iterator[Callable[[int], None]]:
    """A progress bar if the size is known; yields the function to call with the number of bytes read."""
    size = _size(stream)
    with progress_bar("importing", size, hidden=not size) as bar:
        yield bar.update


def _size(stream: BinaryIO) -> int:
    """In bytes; 0 if it is not a file."""
    import stat

    try:
        found = os.fstat(stream.fileno())
    except OSError:
        return 0
    return found.st_size if stat.S_ISREG(found.st_mode) else 0


@contextmanager
def _readable(file: Path) -> Iterator[BinaryIO]:
    if str(file) == "-":
        if sys.stdin is None:
            raise Failure("standard input is closed")
        yield sys.stdin.buffer
        return
    try:
        with file.open("rb") as stream:
            yield stream
    except OSError as error:
        raise Failure(f"cannot read {file}: {error.strerror}") from None


@contextmanager
def _writable(file: Path, source: Path) -> Iterator[TextIO]:
    """Open a file that only its owner can read: whole lines are written to it, with hashes."""
    import stat

    try:
        if file.exists() and source.exists() and file.samefile(source):
            raise Failure("--rejected would replace the file that is imported")
        with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT, 0o600), "w", encoding="utf-8") as stream:
            if stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
                os.fchmod(stream.fileno(), 0o600)
                stream.truncate(0)
            yield stream
    except OSError as error:
        raise Failure(f"cannot write {file}: {error.strerror}") from None
