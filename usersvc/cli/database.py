"""``usersvc db``: looks after the database."""

from pathlib import Path

import click

from usersvc.cli.atomic_file import atomic_file
from usersvc.cli.exit_codes import Failure
from usersvc.cli.stores import database_file, storage_failures

SHOWN_FINDINGS = 5
"""How much damage one line tells of."""


@click.group(name="db", short_help="Back up and check a SQLite database.")
def commands() -> None:
    """Back up and check a SQLite database. PostgreSQL has tools of its own."""


@commands.command(short_help="Copy it as it is at one moment, while the service runs.")
@click.argument("file", type=click.Path(path_type=Path))
def backup(file: Path) -> None:
    """Copy the database to FILE as it is at one moment, while the service runs. FILE must not exist yet.

    \b
    Example:
      usersvc db backup users-$(date +%F).db
    """
    from usersvc.adapters.sqlite import maintenance

    with atomic_file(file) as unfinished, storage_failures():
        maintenance.backup(database_file(), unfinished)
    print(f"saved to {file}")


@commands.command(short_help="Look for damage.")
def check() -> None:
    """Look for damage in the database; tells `ok`, or what it has found."""
    from usersvc.adapters.sqlite import maintenance

    with storage_failures():
        damage = maintenance.damage(database_file())
    if damage:
        # SQLite writes some findings over several lines.
        found = "; ".join(" ".join(finding.split()) for finding in damage[:SHOWN_FINDINGS])
        more = f"; and {len(damage) - SHOWN_FINDINGS} more" if len(damage) > SHOWN_FINDINGS else ""
        raise Failure(f"the database is not as it should be: {found}{more}")
    print("ok")
