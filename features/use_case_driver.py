"""The service as its use cases alone, with fakes around them: no network, no database."""

import asyncio
import logging
import traceback
from collections.abc import Coroutine, Sequence
from dataclasses import asdict
from typing import Any, TypeVar
from uuid import UUID

from features.driver import TAKEN, Answer, Application, Page, Refused, Registered
from tests.fakes import Mailbag, QuickHasher
from usersvc.adapters.memory import InMemoryUsers
from usersvc.application.ports import Order, UserView
from usersvc.application.registration import UserRegistrationService
from usersvc.domain.errors import EmailAlreadyRegistered, RulesBroken
from usersvc.domain.events import UserRegistered
from usersvc.domain.user import EmailAddress, Password, PasswordHash, User

T = TypeVar("T")

TIME_LIMIT = 5.0
"""For one call of a use case, in seconds."""

PAGE_SIZE = 50
"""When none is asked for: the use case leaves it to its caller."""


class YieldingHasher(QuickHasher):
    """Gives way before it hashes, as a real hasher does: people who register at once overtake each other here."""

    async def hash(self, password: Password) -> PasswordHash:
        await asyncio.sleep(0)
        return await super().hash(password)


class Mail(Mailbag):
    """A ``Mailbag`` that can be made to fail or to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.failing_for: set[str] = set()
        self.moving = asyncio.Event()
        self.moving.set()

    async def welcome(self, event: UserRegistered) -> None:
        await self.moving.wait()
        if event.email in self.failing_for:
            raise ConnectionRefusedError("no mail server")
        await super().welcome(event)


class WatchedUsers(InMemoryUsers):
    """An ``InMemoryUsers`` that also keeps what it was given, hashes included."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: list[User] = []

    async def add(self, user: User) -> None:
        await super().add(user)
        self.stored.append(user)


class KeptLog(logging.Handler):
    """Every line that the package logs until this is closed; kept here, and out of behave's report."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self._logger = logging.getLogger("usersvc")
        self._logger.setLevel(logging.DEBUG)
        self._logger.propagate = False
        self._logger.addHandler(self)

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))

    def close(self) -> None:
        self._logger.removeHandler(self)
        self._logger.propagate = True
        super().close()


class UseCaseDriver:
    """A ``Driver`` of the use cases."""

    def __init__(self) -> None:
        self.mail = Mail()
        self._users = WatchedUsers()
        self._hasher = YieldingHasher()
        self._service = UserRegistrationService(self._users, self._hasher, self.mail)
        self._log = KeptLog()
        self._told: list[str] = []
        # One loop for the whole scenario, so that what goes on apart from a call is still there in the next one.
        self._loop = asyncio.Runner()

    def close(self) -> None:
        self._log.close()
        self._loop.close()

    def register(self, application: Application) -> Answer:
        return self._run(self._register(application))

    def register_at_once(self, applications: Sequence[Application]) -> list[Answer]:
        async def all_of_them() -> list[Answer]:
            return await asyncio.gather(*map(self._register, applications))

        return self._run(all_of_them())

    async def _register(self, application: Application) -> Answer:
        assert isinstance(application.age, int), "the use case is only ever given whole numbers"
        try:
            user = await self._service.register(
                email=application.email, password=application.password, age=application.age
            )
        except (RulesBroken, EmailAlreadyRegistered) as error:
            self._told += [*traceback.format_exception(error), repr(error), repr(vars(error))]
            if isinstance(error, EmailAlreadyRegistered):
                return TAKEN
            return Refused(frozenset((violation.field, violation.code) for violation in error.violations))
        self._told.append(repr(user))
        return Registered(user)

    def page(self, *, size: int | None = None, newest_first: bool = False, email: str | None = None) -> Page:
        # Left out where nobody asks for an order, so that the one by default is the service's.
        order = {"order": Order.DESC} if newest_first else {}
        mailbox = None if email is None else EmailAddress.parse(email)

        def begin(after: int | None) -> Page:
            page = self._run(self._service.page(limit=size or PAGE_SIZE, after=after, email=mailbox, **order))
            self._told.append(repr(page))
            following = page.next_after
            return Page(page.users, turn=None if following is None else lambda: begin(following))

        return begin(None)

    def look_up(self, user_id: str) -> UserView | None:
        user = self._run(self._service.find(UUID(user_id)))
        self._told.append(repr(user))
        return user

    def welcomes(self) -> list[tuple[str, str]]:
        self._run(self._service.drain())
        return [(event.email, str(event.user_id)) for event in self.mail.welcomes]

    def recognises(self, user_id: str, password: str) -> bool:
        [user] = (user for user in self._users.stored if str(user.id) == user_id)
        # This hasher uses no salt.
        return self._run(self._hasher.hash(Password.choose(password))) == user.password_hash

    def stored(self) -> bytes:
        return repr([asdict(user) for user in self._users.stored]).encode()

    def stored_hashes(self) -> list[str]:
        return [user.password_hash for user in self._users.stored]

    def shown(self) -> str:
        return "\n".join([*self._told, *map(repr, self.mail.welcomes), *self._log.lines])

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        return self._loop.run(asyncio.wait_for(call, TIME_LIMIT))
