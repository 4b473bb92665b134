"""``usersvc db``."""

from pathlib import Path

import click

from usersvc.cli.output import Failure, atomic_file
from usersvc.cli.stores import check_exists
from usersvc.config import Settings
from usersvc.setting_parsers import SqliteDatabase


@click.group(name="db", short_help="Back up and check a SQLite database.")
def commands() -> None:
    """Back up and check a SQLite database. PostgreSQL has its own tools."""


@commands.command(short_help="Write a consistent copy, while the service runs.")
@click.argument("file", type=click.Path(path_type=Path))
def backup(file: Path) -> None:
    """Write a consistent copy of the database to FILE, while the service runs. FILE must not exist.

    \b
    Example:
      usersvc db backup users-$(date +%F).db
    """
    from usersvc.adapters.sqlite import maintenance

    with atomic_file(file) as unfinished:
        maintenance.backup(_database_file(), unfinished)
    print(f"saved to {file}")


@commands.command(short_help="Check the database for damage.")
def check() -> None:
    """Check the database for damage, and print `ok` or fail with the findings."""
    from usersvc.adapters.sqlite import maintenance

    damage = maintenance.damage(_database_file())
    if damage:
        # The first five, and without the line breaks that some have.
        found = "; ".join(" ".join(finding.split()) for finding in damage[:5])
        raise Failure(f"the database is damaged ({len(damage)} findings): {found}")
    print("ok")


def _database_file() -> Path:
    database = Settings.from_environment().database
    if not isinstance(database, SqliteDatabase):
        raise Failure("this command needs a SQLite file, which USERSVC_DATABASE_URL does not name")
    check_exists(database)
    return database.path
