"""``usersvc users``: list, show, delete, export; import is in a module of its own."""

import sys
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import BinaryIO
from uuid import UUID

import click

from usersvc.application.keyset import in_pages
from usersvc.application.ports import Store
from usersvc.application.read_models import Order, UserView
from usersvc.cli import users_import
from usersvc.cli.output import Failure, atomic_file, print_json, print_message
from usersvc.cli.signals import delayed_signals, interruptible
from usersvc.cli.stores import MAX_POSITION, on_store, open_store, run_on_store
from usersvc.cli.user_files import FORMATS, NDJSON, PUBLIC, encode, format_of, head
from usersvc.config import Settings
from usersvc.domain.email_address import EmailAddress
from usersvc.domain.errors import ValidationFailed

STDOUT = Path("-")


@click.group(name="users", short_help="List, show, delete, import and export users.")
def commands() -> None:
    """List, show, delete, import and export the users in USERSVC_DATABASE_URL, whether the service runs or not."""


@commands.command(name="list", short_help="List users, one per line.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="The maximum number of users.")
@click.option("--after", type=click.IntRange(0, MAX_POSITION), help="Continue after this position.")
@click.option("--newest", is_flag=True, help="Newest first.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@on_store
async def list_users(store: Store, *, limit: int, after: int | None, newest: bool, as_json: bool) -> None:
    """List users: id, time of registration, age, email. For all users, see `usersvc users export`.

    \b
    Examples:
      usersvc users list --newest --limit 10
      usersvc users list --json | jq -r .email
    """
    order = Order.DESC if newest else Order.ASC
    page = None
    read = partial(store.page, order=order, mailbox=None)
    async for page in in_pages(read, lambda page: page.next_after, after=after, limit=limit):
        for user in page.users:
            if as_json:
                print_json(user, indent=None)
            else:
                print(_line(user))
    if page is None:
        print_message("no users" if after is None else "no more users")
    elif page.next_after is not None:
        print_message(f"more users: --after {page.next_after}")


@commands.command(short_help="Show a user, by id or email address.")
@click.argument("who", metavar="ID|EMAIL")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@on_store
async def show(store: Store, who: str, *, as_json: bool) -> None:
    """Show the user with this id or email address, in any spelling; never the password hash."""
    user = await _find(store, who)
    if as_json:
        print_json(user)
    else:
        for name, value in user.items():
            print(f"{name:13}  {value}")


@commands.command(short_help="Delete a user, by id or email address.")
@click.argument("who", metavar="ID|EMAIL")
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def delete(who: str, *, yes: bool) -> None:
    """Delete a user with their pending mails and idempotency keys, in one transaction.

    The address can be registered again. A mail that is being sent may still arrive. Backups and logs are unchanged.
    """
    user = run_on_store(lambda store: _find(store, who))
    if not yes:
        print_message(_line(user))
        if not click.confirm("Delete this user?", err=True):
            raise Failure("no user was deleted")
    if not run_on_store(lambda store: store.remove(UUID(user["id"]))):
        raise Failure("the user was deleted by another command or client")
    print(f"deleted {user['id']}")


@commands.command(name="export", short_help="Write all users to a CSV or NDJSON file.")
@click.argument("file", type=click.Path(readable=False, path_type=Path), default=STDOUT)
@click.option("--format", "chosen", type=click.Choice(FORMATS), help="By default that of the file name, or ndjson.")
@click.option(
    "--with-password-hashes", is_flag=True, help="Include them, so that the file can be imported. Keep it secret."
)
def export(file: Path, *, chosen: str | None, with_password_hashes: bool) -> None:
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


commands.add_command(users_import.command)


async def _find(store: Store, who: str) -> UserView:
    try:
        if "@" in who:
            page = await store.page(limit=1, order=Order.ASC, after=None, mailbox=EmailAddress(who).mailbox)
            user = next(iter(page.users), None)
        else:
            user = await store.find(UUID(who))
    except (ValidationFailed, ValueError):
        raise click.UsageError("Give the id of a user (a UUID) or an email address.") from None
    if user is None:
        raise Failure("no user has this id or address")
    return user


def _line(user: UserView) -> str:
    return f"{user['id']}\t{user['registered_at']}\t{user['age']}\t{user['email']}"
