"""What the steps need from the service, over HTTP or directly."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from typing import Protocol

from usersvc.application.read_models import UserView


@dataclass(frozen=True)
class Application:
    """The data with which a person registers, as typed."""

    email: str
    password: str
    age: int | float | str
    key: str | None = None
    """The idempotency key."""


@dataclass(frozen=True)
class Registered:
    """The person is registered; the service shows this user."""

    user: UserView


@dataclass(frozen=True)
class Refused:
    """The person is not registered: every reason, as the field and the code of the broken rule."""

    reasons: frozenset[tuple[str, str]]


Outcome = Registered | Refused

TAKEN = Refused(frozenset({("email", "taken")}))
KEY_REUSED = Refused(frozenset({("key", "reused")}))


@dataclass(frozen=True)
class Page:
    """Some users, and a function that gets the page after them (None: this is the last)."""

    users: list[UserView]
    next_page: "Callable[[], Page] | None"


@dataclass(frozen=True)
class Unsent:
    """A mail that is not delivered, as the operator sees it."""

    entry_id: int
    address: str
    is_dead_lettered: bool
    reason: str


class Trouble(Enum):
    """How mail to one address fails, in the words of the features."""

    JUST_NOW = "cannot be sent just now"
    FOR_GOOD = "can never be delivered"
    NO_REPLY = "gets no answer"


class MailServer(Protocol):
    """Makes the mail server fail."""

    def go_down(self) -> None:
        """Refuse connections."""

    def come_up(self) -> None:
        """Accept connections again."""

    def begin_trouble(self, email: str, trouble: Trouble) -> None:
        """Make mail to this address fail."""

    def end_trouble(self, email: str) -> None:
        """Accept mail to this address again."""


class Driver(Protocol):
    """The service as one scenario uses it, without users at its start. Every call ends within a limit of time."""

    @property
    def mail_server(self) -> MailServer:
        """The mail server of this scenario."""

    def now(self) -> datetime:
        """The time by the clock of the service."""

    def register(self, application: Application) -> Outcome:
        """Try to register one person."""

    def register_at_once(self, applications: Sequence[Application]) -> list[Outcome]:
        """Try to register people concurrently."""

    def page(self, *, size: int | None = None, newest_first: bool = False, email: str | None = None) -> Page:
        """The first page of users."""

    def look_up(self, user_id: str) -> UserView | None:
        """The user with this id, if there is one."""

    def welcomes(self) -> list[tuple[str, str]]:
        """Every welcome sent so far, as the address and the id of the user, including those that are due now."""

    def wait_for_retries(self) -> None:
        """Wait until no mail is scheduled."""

    def unsent(self) -> list[Unsent]:
        """The mails that are not delivered, in order of registration, after an attempt of those that are due now."""

    def send_again(self, entry_id: int) -> None:
        """Have a mail sent again, as the operator does."""

    def recognises(self, user_id: str, password: str) -> bool:
        """Whether this is the user's password."""

    def stored(self) -> bytes:
        """Everything that is stored."""

    def stored_hashes(self) -> list[str]:
        """The stored hashes of passwords."""

    def shown(self) -> str:
        """Everything that the service has returned, sent and logged."""

    def close(self) -> None:
        """End the use of the service."""
