"""Listing all users page by page from every ``Users`` adapter."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import cache, partial

import pytest

from tests.contract.adapters import Views
from tests.contract.test_users import names, quiet
from tests.fakes import person
from usersvc.application.keyset import BATCH, in_pages
from usersvc.application.ports import Store
from usersvc.application.read_models import Order, Page
from usersvc.domain.user import User

MANY = 3 * BATCH + 7


@cache
def many() -> list[User]:
    return [quiet(f"ü{number}@example.com") for number in range(MANY)]


NAMES = [f"ü{number}" for number in range(MANY)]


def all_batches(
    users: Store, *, order: Order = Order.ASC, after: int | None = None, limit: int | None = None
) -> AsyncGenerator[Page, None]:
    read_page = partial(users.page, order=order, mailbox=None)
    return in_pages(read_page, lambda page: page.next_after, after=after, limit=limit)


async def read(batches: AsyncGenerator[Page, None]) -> list[str]:
    found: list[str] = []
    async with aclosing(batches):
        async for batch in batches:
            assert len(batch.users) <= BATCH
            found += names(batch)
    return found


@pytest.fixture
async def filled(users: Store) -> Store:
    assert all(await users.add_all(many()))
    return users


async def test_a_list_of_an_empty_store_has_no_batch(users: Store) -> None:
    assert [batch async for batch in all_batches(users)] == []
    assert [batch async for batch in all_batches(users, order=Order.DESC)] == []


@pytest.mark.parametrize("limit", [1, BATCH, BATCH + 1, MANY, None])
async def test_all_users_up_to_the_limit_are_listed_once_and_in_order(filled: Store, limit: int | None) -> None:
    assert await read(all_batches(filled, limit=limit)) == NAMES[:limit]
    assert await read(all_batches(filled, order=Order.DESC, limit=limit)) == NAMES[::-1][:limit]


@pytest.mark.parametrize("index", [BATCH - 1, MANY - 1])
async def test_the_list_begins_after_a_position(filled: Store, index: int) -> None:
    position = (await filled.archive.users(after=None, limit=MANY))[index].position
    assert await read(all_batches(filled, after=position)) == NAMES[index + 1 :]
    assert await read(all_batches(filled, after=position, order=Order.DESC)) == NAMES[:index][::-1]


@pytest.mark.parametrize("order", Order)
@pytest.mark.parametrize("batches_read", [1, 2, 3])
async def test_concurrent_additions_and_removals_repeat_and_skip_no_other_user(
    filled: Store, order: Order, batches_read: int
) -> None:
    expected = NAMES if order is Order.ASC else NAMES[::-1]
    async with aclosing(all_batches(filled, order=order)) as batches:
        found: list[str] = []
        for _ in range(batches_read):
            found += names(await anext(batches))
        # A user who was listed, one who would be listed last but one, and a new one.
        shown, to_come = found[-1], expected[-2]
        for name in (shown, to_come):
            assert await filled.remove(many()[NAMES.index(name)].id)
        await filled.add(person("new@example.com"))
        found += [name async for batch in batches for name in names(batch)]
    if order is Order.ASC:
        assert found.pop() == "new"
    assert [name for name in found if name != to_come] == [name for name in expected if name != to_come]


async def test_slow_readers_block_no_other_caller(views: Views) -> None:
    one, other = views
    assert all(await one.add_all(many()))
    slow = [all_batches(one) for _ in range(20)]
    for batches in slow:
        assert names(await anext(batches)) + names(await anext(batches)) == NAMES[: 2 * BATCH]
    await one.add(person("new@example.com"))
    assert await other.remove(many()[0].id)
    assert await read(all_batches(one)) == [*NAMES[1:], "new"]
    for batches in slow[:10]:
        assert await read(batches) == [*NAMES[2 * BATCH :], "new"]
    for batches in slow[10:]:
        await batches.aclose()
