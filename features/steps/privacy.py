from behave import then

from features.scene import Context
from usersvc.application.read_models import UserView


@then("only the id, the address, the age and the time of registration are shown")
def only_the_public_is_shown(context: Context) -> None:
    shown = [user for page in context.scene.pages for user in page.users] or context.scene.all_users()
    assert shown
    for user in shown:
        assert user.keys() == UserView.__required_keys__, user.keys()


@then("nobody has seen the password of {who:Who}, nor what is stored of it")
def password_is_unseen(context: Context, who: str) -> None:
    scene = context.scene
    shown = scene.driver.shown()
    # Whatever the service was asked, it has said something: this looks at the right place.
    assert shown
    for secret in [scene.applications[scene.name(who)].password, *scene.driver.stored_hashes()]:
        assert secret not in shown, shown


@then("the password of {who:Who} is not among what is stored")
def password_is_not_stored(context: Context, who: str) -> None:
    scene = context.scene
    stored = scene.driver.stored()
    # The person is there: this looks at the right place.
    assert scene.users[scene.name(who)]["id"].encode() in stored
    assert scene.applications[scene.name(who)].password.encode() not in stored
