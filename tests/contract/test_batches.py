"""Listing all users page by page from every ``Users`` adapter."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import cache, partial

import pytest

from tests.contract.adapters import Views
from tests.contract.test_users import person, quiet
from usersvc.application.keyset import BATCH, in_pages
from usersvc.application.ports import Store
from usersvc.application.ports import Store as Users
from usersvc.application.read_models import Order
from usersvc.domain.user import User

CROWD = 3 * BATCH + 7


@cache
def crowd() -> list[User]:
    return [quiet(f"ü{number}@example.com") for number in range(CROWD)]


NAMES = [f"ü{number}" for number in range(CROWD)]


async def everybody(
    users: Users,
    *,
    order: Order = Order.ASC,
    after: int | None = None,
    mailbox: str | None = None,
    limit: int | None = None,
) -> AsyncGenerator[bytes, None]:
    read = partial(users.page, order=order, mailbox=mailbox)
    async for page in in_pages(read, lambda page: page.next_after, after=after, limit=limit):
        yield page.lines + b"\n"


def names(batch: bytes) -> list[str]:
    assert batch.endswith(b"\n")
    return [json.loads(line)["email"].partition("@")[0] for line in batch.splitlines()]


async def read(batches: AsyncGenerator[bytes, None]) -> list[str]:
    found: list[str] = []
    async with aclosing(batches):
        async for batch in batches:
            assert len(names(batch)) <= BATCH
            found += names(batch)
    return found


@pytest.fixture
async def crowded(users: Store) -> Store:
    assert all(await users.add_all(crowd()))
    return users


async def test_a_list_of_nobody_has_no_batch(users: Store) -> None:
    assert [batch async for batch in everybody(users)] == []
    assert [batch async for batch in everybody(users, order=Order.DESC)] == []


async def test_everybody_comes_once_and_in_order(crowded: Store) -> None:
    assert await read(everybody(crowded)) == NAMES
    assert await read(everybody(crowded, order=Order.DESC)) == NAMES[::-1]


@pytest.mark.parametrize("order", Order)
async def test_lines_are_those_of_pages(crowded: Store, order: Order) -> None:
    page = await crowded.page(limit=CROWD, order=order, after=None, mailbox=None)
    assert b"".join([batch async for batch in everybody(crowded, order=order)]) == page.lines + b"\n"


@pytest.mark.parametrize("limit", [1, BATCH - 1, BATCH, BATCH + 1, CROWD, CROWD + 1])
async def test_no_more_come_than_were_asked_for(crowded: Store, limit: int) -> None:
    assert await read(everybody(crowded, limit=limit)) == NAMES[:limit]
    assert await read(everybody(crowded, order=Order.DESC, limit=limit)) == NAMES[::-1][:limit]


@pytest.mark.parametrize("index", [0, BATCH - 1, 2 * BATCH, CROWD - 1])
async def test_it_begins_behind_a_position(crowded: Store, index: int) -> None:
    position = (await crowded.archive.users(after=None, limit=CROWD))[index].position
    assert await read(everybody(crowded, after=position)) == NAMES[index + 1 :]
    assert await read(everybody(crowded, after=position, order=Order.DESC)) == NAMES[:index][::-1]


async def test_one_mailbox_can_be_asked_for(crowded: Store) -> None:
    assert await read(everybody(crowded, mailbox="ü5@example.com")) == ["ü5"]
    assert await read(everybody(crowded, mailbox="ü5@example.com", order=Order.DESC, limit=3)) == ["ü5"]
    assert await read(everybody(crowded, mailbox="nobody@example.com")) == []


@pytest.mark.parametrize("order", Order)
async def test_there_are_no_holes_where_somebody_was(crowded: Store, order: Order) -> None:
    gone = {0, 1, BATCH, 2 * BATCH - 1, CROWD - 1}
    for index in gone:
        assert await crowded.remove(crowd()[index].id)
    left = [name for index, name in enumerate(NAMES) if index not in gone]
    assert await read(everybody(crowded, order=order)) == (left if order is Order.ASC else left[::-1])


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("batches_read", [1, 2, 3])
async def test_who_comes_or_goes_meanwhile_makes_nobody_else_come_twice_or_be_skipped(
    crowded: Store, order: Order, batches_read: int
) -> None:
    expected = NAMES if order is Order.ASC else NAMES[::-1]
    async with aclosing(everybody(crowded, order=order)) as batches:
        found: list[str] = []
        for _ in range(batches_read):
            found += names(await anext(batches))
        # One who was shown, one who will be perhaps, and one who comes at the new end.
        shown, to_come = found[-1], expected[-2]
        for name in (shown, to_come):
            assert await crowded.remove(crowd()[NAMES.index(name)].id)
        await crowded.add(person("new@example.com"))
        found += [name async for batch in batches for name in names(batch)]
    if order is Order.ASC:
        assert found.pop() == "new"
    assert [name for name in found if name != to_come] == [name for name in expected if name != to_come]


async def test_nothing_is_read_before_it_is_asked_for(users: Store) -> None:
    batches = everybody(users)
    await users.add_all(crowd())
    assert await read(batches) == NAMES


@pytest.mark.parametrize("batches_read", [0, 1, 2, 3])
async def test_who_has_enough_ends_it_and_nobody_notices(views: Views, batches_read: int) -> None:
    one, other = views
    assert all(await one.add_all(crowd()))
    for _ in range(10):
        batches = everybody(one)
        for _ in range(batches_read):
            await anext(batches)
        await batches.aclose()
        assert [batch async for batch in batches] == []
    assert await other.remove(crowd()[0].id)
    assert await read(everybody(one)) == await read(everybody(other)) == NAMES[1:]


async def test_readers_who_do_not_read_on_keep_nobody_waiting(views: Views) -> None:
    one, other = views
    assert all(await one.add_all(crowd()))
    slow = [everybody(one) for _ in range(20)]
    for batches in slow:
        assert names(await anext(batches)) + names(await anext(batches)) == NAMES[: 2 * BATCH]
    await one.add(person("new@example.com"))
    assert await other.remove(crowd()[0].id)
    assert await read(everybody(one)) == [*NAMES[1:], "new"]
    for batches in slow[:10]:
        assert await read(batches) == [*NAMES[2 * BATCH :], "new"]
    for batches in slow[10:]:
        await batches.aclose()
