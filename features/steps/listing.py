from collections import Counter
from uuid import uuid4

from behave import then, when

from features.driver import Page
from features.scene import Context


@when("somebody lists everybody")
def lists(context: Context) -> None:
    context.scene.pages = [context.scene.driver.page()]


@when("somebody lists everybody, the newest first")
def lists_newest_first(context: Context) -> None:
    context.scene.pages = [context.scene.driver.page(newest_first=True)]


@when("somebody lists people {size:Number} at a time")
def lists_in_pages(context: Context, size: int) -> None:
    context.scene.pages = [context.scene.driver.page(size=size)]


@when("somebody lists people {size:Number} at a time, the newest first")
def lists_in_pages_newest_first(context: Context, size: int) -> None:
    context.scene.pages = [context.scene.driver.page(size=size, newest_first=True)]


@when("somebody looks for {email:Text}")
def looks_for(context: Context, email: str) -> None:
    context.scene.pages = [context.scene.driver.page(email=email)]


@when("they turn the page")
def turn_the_page(context: Context) -> None:
    pages = context.scene.pages
    turn = pages[-1].turn
    assert turn is not None, "this was the last page"
    pages.append(turn())


@when("they turn the pages to the end")
def turn_the_pages(context: Context) -> None:
    while context.scene.pages[-1].turn is not None:
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
    assert shown == {user["id"]: 1 for user in context.scene.everybody()}, shown


@then("this is the last page")
def is_last_page(context: Context) -> None:
    assert context.scene.pages[-1].turn is None


def show_one(context: Context, user_id: str) -> None:
    user = context.scene.driver.look_up(user_id)
    context.scene.pages = [Page([] if user is None else [user], turn=None)]
