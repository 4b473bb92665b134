from collections import Counter
from typing import Any
from uuid import uuid4

from behave import then, when

from features.driver import Page
from features.scene import Context


@when("somebody lists everybody")
@when("somebody lists people {size:Number} at a time")
@when("somebody looks for {email:Text}")
def lists(context: Context, **query: Any) -> None:
    context.scene.pages = [context.scene.driver.page(**query)]


@when("somebody lists everybody, the newest first")
@when("somebody lists people {size:Number} at a time, the newest first")
def lists_newest_first(context: Context, **query: Any) -> None:
    lists(context, newest_first=True, **query)


@when("they turn the page")
def turn_the_page(context: Context) -> None:
    pages = context.scene.pages
    next_page = pages[-1].next_page
    assert next_page is not None, "this was the last page"
    pages.append(next_page())


@when("they turn the pages to the end")
def turn_the_pages(context: Context) -> None:
    while context.scene.pages[-1].next_page is not None:
        turn_the_page(context)


@when("somebody looks {who:Who} up")
def looks_up(context: Context, who: str) -> None:
    show_one(context, context.scene.users[context.scene.name(who)]["id"])


@when("somebody looks up a person who never registered")
def looks_up_unknown(context: Context) -> None:
    show_one(context, str(uuid4()))


@then("they are shown {people:People}")
def are_shown(context: Context, people: list[str]) -> None:
    names = context.scene.names_of(context.scene.pages[-1].users)
    assert names == people, names


@then("they are shown nobody")
def are_shown_nobody(context: Context) -> None:
    [page] = context.scene.pages
    assert page.users == [], page.users


@then("they are shown {count:Number} people")
def are_shown_so_many(context: Context, count: int) -> None:
    shown = len(context.scene.pages[-1].users)
    assert shown == count, shown


@then("they have been shown {people:People}")
def have_been_shown(context: Context, people: list[str]) -> None:
    names = [name for page in context.scene.pages for name in context.scene.names_of(page.users)]
    assert names == people, names


@then("they have been shown everybody exactly once")
def have_been_shown_everybody(context: Context) -> None:
    shown = Counter(user["id"] for page in context.scene.pages for user in page.users)
    assert shown == {user["id"]: 1 for user in context.scene.all_users()}, shown


@then("this is the last page")
def is_last_page(context: Context) -> None:
    assert context.scene.pages[-1].next_page is None


def show_one(context: Context, user_id: str) -> None:
    user = context.scene.driver.look_up(user_id)
    context.scene.pages = [Page([] if user is None else [user], next_page=None)]
