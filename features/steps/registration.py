from dataclasses import replace
from datetime import datetime
from typing import Any

from behave import given, then, when

from features.driver import TAKEN, Application, Refused, Registered
from features.scene import Context, usual_application


@given("{who:Who} has registered")
@given("{who:Who} has registered as {email:Text}")
@given("{who:Who} has registered under the key {key:Text}")
def has_registered(context: Context, who: str, **changes: str) -> None:
    context.scene.apply(who, **changes)
    is_registered(context, who)


@given("{people:People} have registered, one after the other")
def have_registered(context: Context, people: list[str]) -> None:
    for who in people:
        has_registered(context, who)


@when("{who:Who} registers")
@when("{who:Who} registers as {email:Text}")
@when("{who:Who} registers at the age of {age:Age}")
@when("{who:Who} registers with the password {password:Text}")
@when("{who:Who}, whose address is {email:Text}, registers with the password {password:Text}")
@when("{who:Who}, aged {age:Age}, registers as {email:Text} and with the password {password:Text}")
@when("{who:Who} registers under the key {key:Text}")
@when("{who:Who} registers again under the key {key:Text}")
@when("{who:Who}, under the key {key:Text}, registers as {email:Text}")
@when("{who:Who}, under the key {key:Text}, registers with the password {password:Text}")
def registers(context: Context, who: str, **changes: Any) -> None:
    context.scene.apply(who, **changes)


@when("{who:Who} registers with an address of {octets:Number} octets, made of the letter {letter:Text}")
def registers_with_long_address(context: Context, who: str, octets: int, letter: str) -> None:
    context.scene.apply(who, email=address_of(octets, letter))


@when("{who:Who} registers {count:Number} times at once under the key {key:Text}")
def registers_often_under_key(context: Context, who: str, count: int, key: str) -> None:
    scene = context.scene
    application = replace(usual_application(scene.name(who)), key=key)
    scene.crowd = scene.driver.register_at_once([application] * count)


@then("all of them are told the same, and there is one user")
def one_user(context: Context) -> None:
    [user] = context.scene.driver.page().users
    assert context.scene.crowd == [Registered(user)] * len(context.scene.crowd), context.scene.crowd


@when("{count:Number} people register at once")
def many_register(context: Context, count: int) -> None:
    crowd = [usual_application(f"person{number}") for number in range(count)]
    context.scene.crowd = context.scene.driver.register_at_once(crowd)


@when("{count:Number} people register as {email:Text} at once, each in another spelling")
def many_register_as(context: Context, count: int, email: str) -> None:
    # Capitals instead of small letters at the places of the ones in the binary number of each person.
    spellings = [
        "".join(letter.upper() if number >> place & 1 else letter for place, letter in enumerate(email))
        for number in range(count)
    ]
    crowd = [Application(spelling, f"the secret of {spelling}!", 30) for spelling in spellings]
    context.scene.crowd = context.scene.driver.register_at_once(crowd)


@then("{who:Who} is registered")
def is_registered(context: Context, who: str) -> None:
    scene = context.scene
    name = scene.name(who)
    outcome, application = scene.outcomes[name], scene.applications[name]
    assert isinstance(outcome, Registered), outcome
    assert outcome.user["email"] == application.email, "the address has to be shown as it was typed"
    assert outcome.user["age"] == application.age
    assert scene.driver.look_up(outcome.user["id"]) == outcome.user


@then("{who:Who} is told that {reasons:Reasons}")
def is_refused(context: Context, who: str, reasons: frozenset[tuple[str, str]]) -> None:
    outcome = context.scene.outcomes[context.scene.name(who)]
    assert outcome == Refused(reasons), outcome


@then("nobody is registered")
def nobody_is_registered(context: Context) -> None:
    listed = context.scene.driver.page().users
    assert listed == [], listed


@then("only {who:Who} is registered")
def only_is_registered(context: Context, who: str) -> None:
    listed = context.scene.names_of(context.scene.driver.page().users)
    assert listed == [context.scene.name(who)], listed


@then("one of them is registered, and the others are told that the address is taken")
def one_is_registered(context: Context) -> None:
    [user] = context.scene.all_users()
    others = [outcome for outcome in context.scene.crowd if outcome != Registered(user)]
    assert others == [TAKEN] * (len(context.scene.crowd) - 1), others
    listed = context.scene.driver.page().users
    assert listed == [user], listed


@then("{who:Who} is recognised by the password {password:Text}")
def is_recognised(context: Context, who: str, password: str) -> None:
    assert recognises(context, who, password)


@then("{who:Who} is not recognised by the password {password:Text}")
def is_not_recognised(context: Context, who: str, password: str) -> None:
    assert not recognises(context, who, password)


@then("{who:Who} is shown with the time of her registration")
def is_shown_with_time(context: Context, who: str) -> None:
    scene = context.scene
    registered_at = datetime.fromisoformat(scene.users[scene.name(who)]["registered_at"])
    assert scene.began <= registered_at <= scene.driver.now(), registered_at


def recognises(context: Context, who: str, password: str) -> bool:
    scene = context.scene
    return scene.driver.recognises(scene.users[scene.name(who)]["id"], password)


def address_of(octets: int, letter: str) -> str:
    """An address of so many octets in UTF-8, good but for its length, with a domain of that letter."""
    label = letter * 40 + "."
    top = "example"
    labels, rest = divmod(octets - len(f"a@{top}"), len(label.encode()))
    address = f"{'a' * (rest + 1)}@{label * labels}{top}"
    assert len(address.encode()) == octets
    return address
