"""``usersvc outbox``: looks after mails that are still to be sent."""

from typing import TYPE_CHECKING, Any

import click

from usersvc.cli.exit_codes import Failure
from usersvc.cli.output import print_json, say
from usersvc.cli.stores import HIGHEST_PLACE, on_store

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from usersvc.application.outbox_entries import OutboxEntry
    from usersvc.application.ports import Store


@click.group(name="outbox", short_help="Look after mails that are still to be sent.")
def commands() -> None:
    """Look after mails that are still to be sent.

    A mail that a mail server refuses for good, or that has failed for more than a day, is dead-lettered with the
    reason, and is not tried again by itself.
    """


@commands.command(name="list", short_help="Everything that waits or is dead-lettered, a line each.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object a line.")
def list_entries(*, as_json: bool) -> None:
    """List everything that waits or is dead-lettered: id, when it is due, attempts, id of the user, reason.

    Addresses are only in what `usersvc outbox show` tells, and in --json.
    """
    from usersvc.application.clock import timestamp

    async def work(store: "Store") -> None:
        is_empty = True
        async for entry in _entries(store):
            is_empty = False
            if as_json:
                print_json(_document(entry), indent=None)
                continue
            due = "dead-lettered" if entry.due_at is None else timestamp(entry.due_at)
            print(entry.id, due, f"attempts={entry.attempts}", entry.event.user_id, entry.reason or "", sep="\t")
        if is_empty:
            say("nothing waits to be sent")

    on_store(work)


@commands.command(short_help="One entry, as JSON.")
@click.argument("entry_id", metavar="ID", type=int)
def show(entry_id: int) -> None:
    """Show the entry ID as JSON, with the address that the mail goes to."""

    async def work(store: "Store") -> None:
        print_json(_document(await _entry(store, entry_id)))

    on_store(work)


@commands.command(short_help="Send an entry now, also one that is dead-lettered.")
@click.argument("entry_id", metavar="[ID]", type=int, required=False)
@click.option("--all", "all_", is_flag=True, help="Every entry that is dead-lettered.")
def retry(entry_id: int | None, *, all_: bool) -> None:
    """Send the entry ID now, also one that is dead-lettered; its attempts are counted anew.

    The running service looks every 30 seconds for what was put back.

    \b
    Examples:
      usersvc outbox retry 17
      usersvc outbox retry --all
    """
    from usersvc.application.clock import utc_now

    if all_ == (entry_id is not None):
        raise click.UsageError("Give either an ID or --all.")

    async def work(store: "Store") -> None:
        retried = 0
        if entry_id is None:
            async for entry in _entries(store):
                retried += entry.due_at is None and await store.outbox.retry(entry.id, now=utc_now())
        else:
            entry = await _entry(store, entry_id)
            retried += await store.outbox.retry(entry.id, now=utc_now())
            if not retried:
                raise Failure(f"entry {entry_id} is being sent just now")
        # The service notices by itself; it looks every now and then.
        print(f"{retried} to be sent again")

    on_store(work)


async def _entries(store: "Store") -> "AsyncIterator[OutboxEntry]":
    """All entries of the outbox, which are read page by page: there may be millions."""
    from usersvc.application.keyset import in_pages

    async for entries in in_pages(store.outbox.entries, lambda entries: entries[-1].id if entries else None):
        for entry in entries:
            yield entry


async def _entry(store: "Store", entry_id: int) -> "OutboxEntry":
    if 0 < entry_id <= HIGHEST_PLACE:
        for entry in await store.outbox.entries(after=entry_id - 1, limit=1):
            if entry.id == entry_id:
                return entry
    raise Failure(f"the outbox has no entry {entry_id}")


def _document(entry: "OutboxEntry") -> dict[str, Any]:
    from usersvc.application.clock import timestamp

    return {
        "id": entry.id,
        "user_id": str(entry.event.user_id),
        "email": entry.event.email,
        "registered_at": timestamp(entry.event.occurred_at),
        "attempts": entry.attempts,
        "due_at": None if entry.due_at is None else timestamp(entry.due_at),
        "dead_lettered": entry.due_at is None,
        "reason": entry.reason,
    }
