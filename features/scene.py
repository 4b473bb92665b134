"""The state of a scenario, and the types of the parameters of steps."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Protocol

from behave import register_type
from behave.tag_matcher import ActiveTagMatcher
from parse import with_pattern

from features.driver import Application, Driver, Outcome, Page, Registered, Trouble
from usersvc.application.read_models import UserView

REASONS = {
    "the address is no email address": ("email", "invalid-email"),
    "the address is too long": ("email", "too-long"),
    "the address is taken": ("email", "taken"),
    "the age has to be a whole number": ("age", "wrong-type"),
    "the age has to be from 18 to 130": ("age", "out-of-range"),
    "the password is too short": ("password", "too-short"),
    "the password is too long": ("password", "too-long"),
    "the password is a common one": ("password", "common-password"),
    "the password repeats the address": ("password", "same-as-email"),
    "the key belongs to another registration": ("key", "reused"),
}
"""The field and the code of each reason."""


@dataclass
class Scene:
    """The people of one scenario, and what the service has shown them."""

    driver: Driver
    began: datetime = field(init=False)
    applications: dict[str, Application] = field(default_factory=dict)
    """By name, the last registration that each person tried."""
    outcomes: dict[str, Outcome] = field(default_factory=dict)
    """By name, the result of it."""
    users: dict[str, UserView] = field(default_factory=dict)
    """By name, the registered users as the service showed them."""
    crowd: list[Outcome] = field(default_factory=list)
    """The results of people without a name."""
    pages: list[Page] = field(default_factory=list)
    """The pages of the list that have been shown."""
    _last_named: str = ""

    def __post_init__(self) -> None:
        self.began = self.driver.now()

    def name(self, who: str) -> str:
        """Resolve a pronoun: it stands for the person who was named last."""
        if who not in {"she", "he"}:
            self._last_named = who
        return self._last_named

    def apply(self, who: str, **changes: Any) -> None:
        """Try to register a person, with valid data except for the changes."""
        name = self.name(who)
        self.applications[name] = replace(usual_application(name), **changes)
        self.outcomes[name] = outcome = self.driver.register(self.applications[name])
        if isinstance(outcome, Registered):
            self.users[name] = outcome.user

    def all_users(self) -> list[UserView]:
        """All registered users, with a name or without."""
        return [*self.users.values(), *(outcome.user for outcome in self.crowd if isinstance(outcome, Registered))]

    def names_of(self, users: Sequence[UserView]) -> list[str]:
        """The names of these users, who have to be shown as on registering."""
        names = {user["id"]: name for name, user in self.users.items()}
        assert all(user == self.users[names[user["id"]]] for user in users), users
        return [names[user["id"]] for user in users]


def usual_application(name: str) -> Application:
    """Valid data of a person, with an address and a password of their own."""
    return Application(email=f"{name.lower()}@example.com", password=f"7 secrets of {name}!", age=30)


class Context(Protocol):
    """Behave's context, as far as it is used here."""

    scene: Scene

    def add_cleanup(self, cleanup: Any) -> None: ...


def set_scene(context: Context, driver: Driver) -> None:
    """Begin a scenario."""
    context.add_cleanup(driver.close)
    context.scene = Scene(driver)


def runs_at(scenario: Any, **world: str) -> bool:
    """Whether a scenario runs at this level, and with this storage.

    It is skipped where a tag @use.with_level=... names another one, or @not.with_storage=... this one.
    """
    if ActiveTagMatcher(world).should_exclude_with(scenario.effective_tags):
        scenario.skip()
        return False
    return True


# --- types of parameters ---


@with_pattern(r"[A-Z][a-z]+|s?he")
def _who(typed: str) -> str:
    return typed


@with_pattern(r"[A-Z][a-z]+(?:, [A-Z][a-z]+)*(?: and [A-Z][a-z]+)?")
def _people(typed: str) -> list[str]:
    return re.split(", | and ", typed)


@with_pattern(r"\d+")
def _number(typed: str) -> int:
    return int(typed)


@with_pattern(r'-?\d+(?:\.\d+)?|"\w+"')
def _age(typed: str) -> int | float | str:
    if typed.startswith('"'):
        return typed.strip('"')
    return float(typed) if "." in typed else int(typed)


@with_pattern(r'".+?"(?: \d+ times)?(?: with accents typed apart)?')
def _text(typed: str) -> str:
    """A quoted text, optionally repeated, optionally in decomposed form."""
    quoted = re.fullmatch(r'"(?P<text>.+)"(?: (?P<count>\d+) times)?(?P<apart> with accents typed apart)?', typed)
    assert quoted is not None
    text = quoted["text"] * int(quoted["count"] or 1)
    # A feature file looks the same in both forms, so it is written in one and the other is asked for by name.
    return unicodedata.normalize("NFD" if quoted["apart"] else "NFC", text)


_REASON = "|".join(REASONS)


@with_pattern(rf"(?:{_REASON})(?:, (?:{_REASON}))*(?: and (?:{_REASON}))?")
def _reasons(typed: str) -> frozenset[tuple[str, str]]:
    return frozenset(REASONS[reason] for reason in re.findall(_REASON, typed))


@with_pattern("|".join(trouble.value for trouble in Trouble))
def _trouble(typed: str) -> Trouble:
    return Trouble(typed)


register_type(Who=_who, People=_people, Number=_number, Age=_age, Text=_text, Reasons=_reasons, Trouble=_trouble)
