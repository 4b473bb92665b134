"""``usersvc users import``: takes users over from another system, or from another usersvc."""

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
from usersvc.cli.output import progress_bar, say

if TYPE_CHECKING:
    import asyncio

    from usersvc.application.user_import import Outcome, UserImport
    from usersvc.cli.reader import Line
    from usersvc.config import Settings

SHOWN_REJECTIONS = 10
"""How many lines are told of on the terminal; --rejected has all."""


@click.command(name="import", short_help="Take users over from a CSV or NDJSON file.")
@click.argument("file", type=click.Path(readable=False, path_type=Path))
@click.option("--format", "chosen", type=click.Choice(FORMATS), help="By default what the file's name ends with.")
@click.option("--dry-run", is_flag=True, help="Check everything, also against who is there; store nothing.")
@click.option(
    "--rejected",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write every rejected line with its number and all reasons here, as NDJSON; what was there is replaced.",
)
@click.option("--ignore-unknown", is_flag=True, help="Pass over columns that a user does not have.")
def command(file: Path, *, chosen: str | None, dry_run: bool, rejected: Path | None, ignore_unknown: bool) -> int:
    """Take over the users in FILE (- is standard input): CSV whose first line names the columns, or NDJSON.

    \b
    email          as the user typed it
    age            in years, by the same rule as for everybody
    password_hash  bcrypt of another system ($2a$, $2b$, $2y$), cost 4 to 16, or as `users export` wrote it
    id             optional: a UUID; by default a new one
    registered_at  optional: a time as in 2026-01-31T09:30:00Z; by default now

    Nobody is sent a mail. FILE is UTF-8. A database file that is missing is made. An import that was broken off, even
    by a crash, is run again from the beginning: who is there with the same data is counted as already there. Somebody
    else's mailbox or id is not taken.

    The exit code is 3 when some lines were rejected; all others are stored then.

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
                error.signal_number, f"stopped; {report.summary()}; the same command again takes over the rest"
            ) from None
        except Failure as error:
            raise Failure(f"{error}; {report.summary()}" if report.counts else str(error)) from None
        finally:
            report.tell()
    print(report.summary())
    return SOME_REJECTED if report.counts["rejected"] else DONE


def _run(settings: "Settings", stream: BinaryIO, form: Format, report: "_Report", *, ignore_unknown: bool) -> None:
    import asyncio

    from usersvc.cli.reader import Source, read_lines
    from usersvc.cli.signals import Interruption
    from usersvc.cli.stores import storage_failures

    source = Source(stream)
    with ExitStack() as stack:
        stack.enter_context(storage_failures())
        interruption = stack.enter_context(Interruption())
        # Files are read outside of the loop: nothing else goes on meanwhile, and a signal can break it off.
        loop = stack.enter_context(asyncio.Runner())
        importing = stack.enter_context(_import(loop, settings, dry_run=report.dry_run))
        bar = stack.enter_context(_progress(stream))
        batches = _batches(read_lines(source, form, ignore_unknown=ignore_unknown))
        shown = 0
        while True:
            with interruption.heeded():
                batch = next(batches, None)
            if batch is None:
                break
            report.add(batch, loop.run(_taken(importing, batch)))
            bar(source.bytes_read - shown)
            shown = source.bytes_read
            interruption.heed()


@contextmanager
def _import(loop: "asyncio.Runner", settings: "Settings", *, dry_run: bool) -> Iterator["UserImport"]:
    """The use case, on the store that the settings name or on a rehearsal of it, while this is entered."""
    from dataclasses import replace

    from usersvc.application.user_import import DryRun, UserImport
    from usersvc.bootstrap import opened_store
    from usersvc.cli.stores import entered, opened
    from usersvc.config import MemoryDatabase, SqliteDatabase

    opening = opened(settings, create=True)
    if dry_run and isinstance(settings.database, SqliteDatabase) and not settings.database.path.exists():
        # It would be made; so nobody is there.
        opening = opened_store(replace(settings, database=MemoryDatabase()))
    with entered(loop, opening) as store:
        if dry_run:
            rehearsal = DryRun(store.archive)
            yield UserImport(add_all=rehearsal.add_all, find_matching=rehearsal.find_matching)
        else:
            yield UserImport(add_all=store.add_all, find_matching=store.archive.find_matching)


def _batches(lines: Iterator["Line"]) -> Iterator[Sequence["Line"]]:
    from itertools import islice

    from usersvc.application.user_import import STORED_AT_ONCE

    while True:
        batch: list[Line] = []
        try:
            batch.extend(islice(lines, STORED_AT_ONCE))
        except Failure:
            # Who was read before is taken over.
            if batch:
                yield batch
            raise
        if not batch:
            return
        yield batch


async def _taken(importing: "UserImport", batch: Sequence["Line"]) -> Sequence["Outcome"]:
    """What becomes of each line."""
    from usersvc.application.user_import import ImportStatus, Outcome
    from usersvc.cli.row_schema import row
    from usersvc.domain.errors import ValidationFailed

    outcomes: dict[int, Outcome] = {}
    rows = {}
    for index, line in enumerate(batch):
        try:
            if line.violations:
                raise ValidationFailed(line.violations)
            rows[index] = row(line.values)
        except ValidationFailed as refused:
            outcomes[index] = Outcome(ImportStatus.REJECTED, refused.violations)
    outcomes |= zip(rows, await importing.take([*rows.values()]), strict=True)
    return [outcomes[index] for index in range(len(batch))]


class _Report:
    """What became of the lines so far."""

    def __init__(self, *, dry_run: bool) -> None:
        self.dry_run = dry_run
        self.rejected: TextIO | None = None
        self.counts: Counter[str] = Counter()
        self._shown: list[str] = []

    def add(self, batch: Sequence["Line"], outcomes: Sequence["Outcome"]) -> None:
        """Count a batch, and write down who was rejected."""
        for line, outcome in zip(batch, outcomes, strict=True):
            self.counts[outcome.status.value] += 1
            if outcome.violations:
                self._reject(line, outcome)
        if self.rejected is not None:
            self.rejected.flush()

    def _reject(self, line: "Line", outcome: "Outcome") -> None:
        if len(self._shown) < SHOWN_REJECTIONS:
            # Never what stands there: it may be a hash.
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

    def tell(self) -> None:
        """Tell of the first lines that were rejected."""
        for text in self._shown:
            say(text)
        if self.counts["rejected"] > len(self._shown):
            more = self.counts["rejected"] - len(self._shown)
            say(f"and {more} more" + ("" if self.rejected else "; --rejected FILE writes them all down"))

    def summary(self) -> str:
        """All of it in one line."""
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
    """A bar on a terminal, when it is known how much there is; gives what is to be told of how much was done."""
    size = _size(stream)
    with progress_bar("importing", size, hidden=not size) as bar:
        yield bar.update


def _size(stream: BinaryIO) -> int:
    """Bytes; 0 for what is no file."""
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
    """A file for its owner alone, since whole lines go there, hashes and all."""
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
