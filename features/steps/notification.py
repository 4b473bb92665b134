import re
from dataclasses import replace
from datetime import timedelta
from itertools import pairwise

from behave import given, then, when

from features.driver import Registered, Trouble, Unsent
from features.http_driver import HttpDriver
from features.scene import Context, usual_application
from features.use_case_driver import UseCaseDriver
from usersvc.application.mail_delivery import FIRST_DELAY, MAX_DELAY


@given("the mail server is down")
def mail_server_is_down(context: Context) -> None:
    context.scene.driver.mail_server.go_down()


@when("the mail server is up again")
def mail_server_is_up(context: Context) -> None:
    context.scene.driver.mail_server.come_up()


@given("mail to {email:Text} {trouble:Trouble}")
def mail_meets_with_trouble(context: Context, email: str, trouble: Trouble) -> None:
    context.scene.driver.mail_server.begin_trouble(email, trouble)


@when("mail to {email:Text} can be delivered again")
def mail_meets_with_no_trouble(context: Context, email: str) -> None:
    context.scene.driver.mail_server.end_trouble(email)


@when("{count:Number} hours pass")
def hours_pass(context: Context, count: int) -> None:
    in_fake_time(context).pass_time(timedelta(hours=count))


@given("{email:Text} has been registered {count:Number} times, with another tag each time")
def is_registered_with_tags(context: Context, email: str, count: int) -> None:
    local, _, domain = email.partition("@")
    usual = usual_application(local)
    crowd = [replace(usual, email=f"{local}+{number}@{domain}") for number in range(count)]
    context.scene.crowd = context.scene.driver.register_at_once(crowd)
    assert all(isinstance(outcome, Registered) for outcome in context.scene.crowd), context.scene.crowd


@then("{who:Who} has found {count:Number} welcomes in the mailbox {email:Text}")
def found_welcomes(context: Context, who: str, count: int, email: str) -> None:
    context.scene.name(who)
    addresses = [address for address, _ in context.scene.driver.welcomes()]
    found = [address for address in addresses if re.sub(r"\+\d+@", "@", address) == email]
    assert len(found) == count, addresses


@when("a minute passes")
def minute_passes(context: Context) -> None:
    in_fake_time(context).pass_time(timedelta(minutes=1))


@given("the mail to {email:Text} was dead-lettered")
def was_dead_lettered(context: Context, email: str) -> None:
    assert unsent_to(context, email).is_dead_lettered


@when("the operator has the mail to {email:Text} sent again")
def is_sent_again(context: Context, email: str) -> None:
    context.scene.driver.send_again(unsent_to(context, email).entry_id)


@then("a welcome is sent to {email:Text}, and to nobody else")
def one_welcome(context: Context, email: str) -> None:
    addresses = [address for address, _ in context.scene.driver.welcomes()]
    assert addresses == [email], addresses


@then("a welcome is sent to {email:Text} in the end, and to nobody else")
def one_welcome_in_the_end(context: Context, email: str) -> None:
    context.scene.driver.wait_for_retries()
    one_welcome(context, email)


@then("everybody who registered is sent one welcome, and nobody else is sent any")
def one_welcome_each(context: Context) -> None:
    welcomes = sorted(context.scene.driver.welcomes())
    assert welcomes == sorted((user["email"], user["id"]) for user in context.scene.all_users()), welcomes


@then("nobody is sent a welcome")
def no_welcome(context: Context) -> None:
    welcomes = context.scene.driver.welcomes()
    assert welcomes == [], welcomes


@then("it says that {email:Text} has been registered")
def welcome_says_address(context: Context, email: str) -> None:
    driver = context.scene.driver
    assert isinstance(driver, HttpDriver), "only mails that are really sent have words"
    words = driver.texts()
    assert len(words) == len(("text", "HTML")), words
    assert all(email in form for form in words), words


@then("the operator is told that the mail to {email:Text} is dead-lettered because {reason}")
def dead_letter_is_reported(context: Context, email: str, reason: str) -> None:
    unsent = unsent_to(context, email)
    assert unsent.is_dead_lettered, unsent
    assert reason in unsent.reason, unsent


@then("the operator is told that no mail is left over")
def no_mail_is_reported(context: Context) -> None:
    unsent = context.scene.driver.unsent()
    assert unsent == [], unsent


@then("the operator is told that the mail to {email:Text} waits to be tried again")
def retry_is_reported(context: Context, email: str) -> None:
    unsent = unsent_to(context, email)
    assert not unsent.is_dead_lettered, unsent
    assert unsent.reason, unsent


@then("the mail to {email:Text} was tried after waits that grow from seconds to an hour")
def was_tried_after_growing_delays(context: Context, email: str) -> None:
    tried_at = [at for address, at in in_fake_time(context).mail_server.attempts if address == email]
    delays = [after - before for before, after in pairwise(tried_at)]
    # Jitter shortens each delay by up to a half, also those at the maximum.
    growing = [delay for delay in delays if delay < MAX_DELAY / 2]
    assert delays[0] <= FIRST_DELAY, delays
    assert delays[: len(growing)] == sorted(growing), delays
    assert len(growing) < len(delays), delays
    assert max(delays) <= MAX_DELAY, delays


def unsent_to(context: Context, email: str) -> Unsent:
    unsent = context.scene.driver.unsent()
    found = [mail for mail in unsent if mail.address == email]
    assert len(found) == 1, unsent
    return found[0]


def in_fake_time(context: Context) -> UseCaseDriver:
    driver = context.scene.driver
    assert isinstance(driver, UseCaseDriver), "time that is real passes by itself"
    return driver
