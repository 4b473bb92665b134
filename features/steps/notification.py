from behave import given, then, when

from features.scene import Context
from features.use_case_driver import Mail, UseCaseDriver


@given("mail to {email:Text} cannot be sent")
def mail_fails(context: Context, email: str) -> None:
    mail_of(context).failing_for.add(email)


@given("mail is held up")
def mail_waits(context: Context) -> None:
    mail_of(context).moving.clear()


@when("mail moves again")
def mail_moves(context: Context) -> None:
    mail_of(context).moving.set()


@then("a welcome is sent to {email:Text}, and to nobody else")
def one_welcome(context: Context, email: str) -> None:
    addresses = [address for address, _ in context.scene.driver.welcomes()]
    assert addresses == [email], addresses


@then("everybody who registered is sent one welcome, and nobody else is sent any")
def one_welcome_each(context: Context) -> None:
    welcomes = sorted(context.scene.driver.welcomes())
    assert welcomes == sorted((user["email"], user["id"]) for user in context.scene.everybody()), welcomes


@then("nobody is sent a welcome")
def no_welcome(context: Context) -> None:
    welcomes = context.scene.driver.welcomes()
    assert welcomes == [], welcomes


def mail_of(context: Context) -> Mail:
    driver = context.scene.driver
    assert isinstance(driver, UseCaseDriver), "only the fake mail can be told to misbehave"
    return driver.mail
