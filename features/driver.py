"""What the steps need from the service, whichever way they reach it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Protocol

from usersvc.application.read_models import UserView


@dataclass(frozen=True)
class Application:
    """What a person hands in to register, as typed."""

    email: str
    password: str
    age: int | float | str
    key: str | None = None
    """What the person's program calls this registration, so that it can ask again."""


@dataclass(frozen=True)
class Registered:
    """The answer to somebody who is registered now: what the service shows of them."""

    user: UserView


@dataclass(frozen=True)
class Refused:
    """The answer to somebody who is not: every reason, as the field and the code of the broken rule."""

    reasons: frozenset[tuple[str, str]]


Answer = Registered | Refused

TAKEN = Refused(frozenset({("email", "taken")}))
KEY_REUSED = Refused(frozenset({("key", "reused")}))


@dataclass(frozen=True)
class Page:
    """Some users, and how to get at those after them (None: there are none)."""

    users: list[UserView]
    turn: "Callable[[], Page] | None"


@dataclass(frozen=True)
class Unsent:
    """A mail that waits to be sent or is dead-lettered, as the operator is shown it."""

    entry_id: int
    address: str
    is_set_aside: bool
    reason: str


class Trouble(Enum):
    """What may happen to the mail to one address; the value is what the features call it."""

    JUST_NOW = "cannot be sent just now"
    FOR_GOOD = "can never be delivered"
    NO_ANSWER = "gets no answer"


class MailServer(Protocol):
    """The mail server, as far as it can be made to misbehave."""

    def go_down(self) -> None:
        """Take no connection from now on."""

    def come_up(self) -> None:
        """Take connections again."""

    def begin_trouble(self, email: str, trouble: Trouble) -> None:
        """Have mail to this address meet with trouble."""

    def end_trouble(self, email: str) -> None:
        """Take mail to this address again."""


class Driver(Protocol):
    """The service as one scenario uses it: nobody is registered when the scenario begins.

    Every call returns within a limit of time, or fails.
    """

    @property
    def mail_server(self) -> MailServer:
        """The mail server of this scenario."""

    def now(self) -> datetime:
        """The time by the clock of the service."""

    def register(self, application: Application) -> Answer:
        """Try to register one person."""

    def register_at_once(self, applications: Sequence[Application]) -> list[Answer]:
        """Try to register people who do not wait for each other."""

    def page(self, *, size: int | None = None, newest_first: bool = False, email: str | None = None) -> Page:
        """The first page of who is registered; what is left out is not asked for."""

    def look_up(self, user_id: str) -> UserView | None:
        """The user with this id, if there is one."""

    def welcomes(self) -> list[tuple[str, str]]:
        """Every welcome sent so far, as the address and the id of the user; waits for those that are due by now."""

    def wait_for_retries(self) -> None:
        """Wait until no mail is left to be tried again."""

    def unsent(self) -> list[Unsent]:
        """What the operator is shown of the mails that are not sent, in order of registration; waits for those due."""

    def send_again(self, entry_id: int) -> None:
        """Have a mail sent again, as the operator does."""

    def recognises(self, user_id: str, password: str) -> bool:
        """Whether a password, typed again, fits what is stored of this user's."""

    def stored(self) -> bytes:
        """Everything that is stored."""

    def stored_hashes(self) -> list[str]:
        """What is stored of the passwords."""

    def shown(self) -> str:
        """Everything that the service has answered, sent and logged."""

    def close(self) -> None:
        """End the use of the service."""
