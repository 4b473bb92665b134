"""``usersvc outbox``."""

from collections.abc import AsyncIterator
from typing import Any

import click

from usersvc.application.clock import timestamp, utc_now
from usersvc.application.keyset import in_pages
from usersvc.application.outbox_entries import OutboxEntry
from usersvc.application.ports import Store
from usersvc.cli.output import Failure, print_json, print_message
from usersvc.cli.stores import MAX_POSITION, on_store


@click.group(name="outbox", short_help="Inspect and retry mails that are not sent yet.")
def commands() -> None:
    """Inspect and retry mails that are not sent yet.

    A mail that the mail server rejects permanently, or that has failed for more than a day, is dead-lettered with the
    reason: it is only retried with `usersvc outbox retry`.
    """


@commands.command(name="list", short_help="List pending and dead-lettered mails, one per line.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@on_store
async def list_entries(store: Store, *, as_json: bool) -> None:
    """List pending and dead-lettered mails: id, due time, attempts, user id, reason.

    Addresses are only printed by `usersvc outbox show` and with --json.
    """
    entry = None
    async for entry in _entries(store):
        if as_json:
            print_json(_document(entry), indent=None)
        else:
            due = "dead-lettered" if entry.due_at is None else timestamp(entry.due_at)
            print(entry.id, due, f"attempts={entry.attempts}", entry.event.user_id, entry.reason or "", sep="\t")
    if entry is None:
        print_message("the outbox is empty")


@commands.command(short_help="Show one mail as JSON.")
@click.argument("entry_id", metavar="ID", type=int)
@on_store
async def show(store: Store, entry_id: int) -> None:
    """Show the mail ID as JSON, with its address."""
    print_json(_document(await _entry(store, entry_id)))


@commands.command(short_help="Send a mail now, also a dead-lettered one.")
@click.argument("entry_id", metavar="[ID]", type=int, required=False)
@click.option("--all", "all_", is_flag=True, help="Retry all dead-lettered mails.")
@on_store
async def retry(store: Store, entry_id: int | None, *, all_: bool) -> None:
    """Send the mail ID now, also a dead-lettered one, and reset its number of attempts.

    The running service notices it within 30 seconds.

    \b
    Examples:
      usersvc outbox retry 17
      usersvc outbox retry --all
    """
    if all_ == (entry_id is not None):
        raise click.UsageError("Give either an ID or --all.")
    if entry_id is None:
        ids = [entry.id async for entry in _entries(store) if entry.due_at is None]
    else:
        ids = [(await _entry(store, entry_id)).id]
    count = sum([await store.outbox.retry(each, now=utc_now()) for each in ids])
    if not count and not all_:
        raise Failure(f"mail {entry_id} is being sent")
    print(f"{count} rescheduled")


async def _entries(store: Store) -> AsyncIterator[OutboxEntry]:
    """All entries, read in pages: there may be millions."""
    async for entries in in_pages(store.outbox.entries, lambda entries: entries[-1].id if entries else None):
        for entry in entries:
            yield entry


async def _entry(store: Store, entry_id: int) -> OutboxEntry:
    if 0 < entry_id <= MAX_POSITION:
        for entry in await store.outbox.entries(after=entry_id - 1, limit=1):
            if entry.id == entry_id:
                return entry
    raise Failure(f"the outbox has no mail {entry_id}")


def _document(entry: OutboxEntry) -> dict[str, Any]:
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
