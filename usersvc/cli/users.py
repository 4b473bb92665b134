"""``usersvc users``: shows, removes and moves users."""

from functools import partial
from typing import TYPE_CHECKING

import click

from usersvc.cli import users_export, users_import
from usersvc.cli.exit_codes import Failure
from usersvc.cli.output import print_json, say
from usersvc.cli.stores import HIGHEST_PLACE, on_store

if TYPE_CHECKING:
    from usersvc.application.ports import Store
    from usersvc.application.read_models import UserView


@click.group(name="users", short_help="Show, remove and move users.")
def commands() -> None:
    """Show, remove and move users, of whichever database USERSVC_DATABASE_URL names, while the service runs or not."""


@commands.command(name="list", short_help="Who is registered, a line each.")
@click.option("--limit", type=click.IntRange(1), default=50, show_default=True, help="At most so many.")
@click.option("--after", type=click.IntRange(0, HIGHEST_PLACE), help="Begin where a list before ended.")
@click.option("--newest", is_flag=True, help="The newest first.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_users(*, limit: int, after: int | None, newest: bool, as_json: bool) -> None:
    """List who is registered: id, time of registration, age, email. `usersvc users export` gives everybody.

    \b
    Examples:
      usersvc users list --newest --limit 10
      usersvc users list --json | jq -r .email
    """
    from usersvc.application.keyset import in_pages
    from usersvc.application.read_models import Order

    order = Order.DESC if newest else Order.ASC

    async def work(store: "Store") -> None:
        page = None
        read = partial(store.page, order=order, mailbox=None)
        async for page in in_pages(read, lambda page: page.next_after, after=after, limit=limit):
            for user in page.users:
                if as_json:
                    print_json(user, indent=None)
                else:
                    print(user["id"], user["registered_at"], user["age"], user["email"], sep="\t")
        if page is None:
            say("nobody is registered" if after is None else "nobody comes behind")
        elif page.next_after is not None:
            say(f"there are more: --after {page.next_after}")

    on_store(work)


@commands.command(short_help="One user, by id or by email address.")
@click.argument("who", metavar="ID|EMAIL")
@click.option("--json", "as_json", is_flag=True, help="As one JSON object.")
def show(who: str, *, as_json: bool) -> None:
    """Show the user with this id, or with this mailbox in any spelling; never the password or its hash.

    \b
    Examples:
      usersvc users show alice@example.com
      usersvc users show 01936f3c-5e1a-7b3c-9d2e-4f5a6b7c8d9e --json
    """

    async def work(store: "Store") -> "UserView":
        return await _found(store, who)

    user = on_store(work)
    if as_json:
        print_json(user)
    else:
        _print(user)


@commands.command(short_help="Remove a user, by id or by email address.")
@click.argument("who", metavar="ID|EMAIL")
@click.option("--yes", is_flag=True, help="Do not ask.")
def delete(who: str, *, yes: bool) -> None:
    """Remove a user, what is still to be sent to them, and their idempotency keys: all or nothing, and for good.

    The mailbox is free again. A mail that is being sent just now may still arrive. Backups and logs keep what they
    have.

    \b
    Examples:
      usersvc users delete alice@example.com
      usersvc users delete --yes 01936f3c-5e1a-7b3c-9d2e-4f5a6b7c8d9e
    """
    from uuid import UUID

    async def look(store: "Store") -> "UserView":
        return await _found(store, who)

    user = on_store(look)
    if not yes:
        say(f"{user['id']}\t{user['registered_at']}\t{user['age']}\t{user['email']}")
        if not _confirmed("Remove this user for good?"):
            raise Failure("nobody was removed")

    async def remove(store: "Store") -> bool:
        return await store.remove(UUID(user["id"]))

    if not on_store(remove):
        raise Failure("the user was removed meanwhile")
    print(f"removed {user['id']}")


commands.add_command(users_import.command)
commands.add_command(users_export.command)


def _confirmed(question: str) -> bool:
    try:
        return click.confirm(question, err=True)
    except click.Abort:
        # Ctrl-C, or nobody is there to answer. The question's line is still open.
        say("")
        return False


async def _found(store: "Store", who: str) -> "UserView":
    """The user with an id, or with a mailbox; what has an @ is taken for an address.

    Raises:
        click.BadParameter: it is neither.
        Failure: nobody has it.
    """
    from uuid import UUID

    from usersvc.application.read_models import Order
    from usersvc.domain.errors import ValidationFailed
    from usersvc.domain.user import EmailAddress

    user: UserView | None
    try:
        if "@" in who:
            address = EmailAddress(who)
            found = await store.page(limit=1, order=Order.ASC, after=None, mailbox=address.mailbox)
            user = next(iter(found.users), None)
        else:
            user = await store.find(UUID(who))
    except (ValidationFailed, ValueError):
        raise click.UsageError("Give the id of a user, a UUID, or an email address.") from None
    if user is None:
        raise Failure("nobody is registered under this id or address")
    return user


def _print(user: "UserView") -> None:
    for name, value in user.items():
        print(f"{name:13}  {value}")
