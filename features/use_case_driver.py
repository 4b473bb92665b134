"""The use cases with fakes: no network, no database, and fake time."""

import asyncio
import logging
import traceback
from collections.abc import Coroutine, Sequence
from contextlib import AsyncExitStack, closing
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from features.driver import KEY_REUSED, TAKEN, Application, Outcome, Page, Refused, Registered, Trouble, Unsent
from tests.fake_time import FakeTimeLoop, now
from tests.fakes import QuickHasher
from usersvc.adapters.memory import InMemoryUsers
from usersvc.application.errors import Undeliverable
from usersvc.application.idempotency import IdempotencyKey
from usersvc.application.mail_delivery import MailDelivery
from usersvc.application.read_models import Order, UserView
from usersvc.application.registration import IdempotencyKeyReused, UserRegistrationService
from usersvc.domain.email_address import EmailAddress
from usersvc.domain.errors import EmailAlreadyRegistered, ValidationFailed
from usersvc.domain.events import UserRegistered
from usersvc.domain.password import Password, PasswordHash
from usersvc.domain.user import User

T = TypeVar("T")

CALL_TIMEOUT = timedelta(seconds=5)
"""For one call of a use case."""

MOMENT = timedelta(seconds=1)
"""Enough for everything that is due now; less than the delay before a retry."""

RETRY_TIMEOUT = timedelta(hours=2)
"""More than the longest delay before a retry."""

PAGE_SIZE = 50
"""The default, which the use case leaves to its caller."""


class YieldingHasher(QuickHasher):
    """Yields before it hashes, as a real hasher does, so that concurrent registrations interleave."""

    async def hash(self, password: Password) -> PasswordHash:
        await asyncio.sleep(0)
        return await super().hash(password)


class FakeMailServer:
    """A ``Notifier`` that keeps the events, can be made to fail, and records the times of attempts."""

    def __init__(self) -> None:
        self.welcomes: list[UserRegistered] = []
        self.attempts: list[tuple[str, datetime]] = []
        self._is_up = True
        self._troubles: dict[str, Trouble] = {}

    def go_down(self) -> None:
        self._is_up = False

    def come_up(self) -> None:
        self._is_up = True

    def begin_trouble(self, email: str, trouble: Trouble) -> None:
        self._troubles[email] = trouble

    def end_trouble(self, email: str) -> None:
        del self._troubles[email]

    async def welcome(self, event: UserRegistered) -> None:
        self.attempts.append((event.email, now()))
        if not self._is_up:
            raise ConnectionRefusedError("nobody answers at the mail server")
        match self._troubles.get(event.email):
            case Trouble.JUST_NOW:
                raise ConnectionAbortedError("the mailbox is busy")
            case Trouble.FOR_GOOD:
                raise Undeliverable("the mail server refuses the recipient")
            case Trouble.NO_REPLY:
                await asyncio.Event().wait()
            case None:
                self.welcomes.append(event)


class WatchedUsers(InMemoryUsers):
    """An ``InMemoryUsers`` that also keeps the stored users, including hashes."""

    def __init__(self) -> None:
        super().__init__()
        self.stored: list[User] = []

    async def add(self, user: User, *, key: IdempotencyKey | None = None) -> None:
        await super().add(user, key=key)
        self.stored.append(user)


class KeptLog(logging.Handler):
    """Captures every line that the package logs, and keeps it out of behave's report."""

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
        self.mail_server = FakeMailServer()
        self._users = WatchedUsers()
        self._hasher = YieldingHasher()
        dispatcher = MailDelivery(self._users.outbox, self.mail_server, clock=now)
        self._service = UserRegistrationService(self._users, self._hasher, clock=now, on_registered=dispatcher.wake)
        self._log = KeptLog()
        self._shown: list[str] = []
        # One loop for the whole scenario, so that background tasks survive from call to call.
        self._loop = asyncio.Runner(loop_factory=FakeTimeLoop)
        self._running = AsyncExitStack()
        self._run(self._running.enter_async_context(dispatcher))

    def close(self) -> None:
        with self._loop, closing(self._log):
            self._loop.run(self._running.aclose())

    def now(self) -> datetime:
        async def read_clock() -> datetime:
            return now()

        return self._run(read_clock())

    def pass_time(self, duration: timedelta) -> None:
        """Let time pass, and run everything that becomes due."""
        self._loop.run(asyncio.sleep(duration.total_seconds()))

    def register(self, application: Application) -> Outcome:
        return self._run(self._register(application))

    def register_at_once(self, applications: Sequence[Application]) -> list[Outcome]:
        async def register_all() -> list[Outcome]:
            return await asyncio.gather(*map(self._register, applications))

        return self._run(register_all())

    async def _register(self, application: Application) -> Outcome:
        assert isinstance(application.age, int), "the use case accepts whole numbers only"
        try:
            registered = await self._service.register(
                email=application.email, password=application.password, age=application.age, key=application.key
            )
        except (ValidationFailed, EmailAlreadyRegistered, IdempotencyKeyReused) as error:
            self._shown += [*traceback.format_exception(error), repr(error), repr(vars(error))]
            if isinstance(error, EmailAlreadyRegistered):
                return TAKEN
            if isinstance(error, IdempotencyKeyReused):
                return KEY_REUSED
            return Refused(frozenset((violation.field, violation.code) for violation in error.violations))
        self._shown.append(repr(registered))
        return Registered(registered.user)

    def page(self, *, size: int | None = None, newest_first: bool = False, email: str | None = None) -> Page:
        order = Order.DESC if newest_first else Order.ASC
        mailbox = None if email is None else EmailAddress(email).mailbox

        def begin(after: int | None) -> Page:
            page = self._run(self._users.page(limit=size or PAGE_SIZE, order=order, after=after, mailbox=mailbox))
            self._shown.append(repr(page))
            following = page.next_after
            return Page(page.users, next_page=None if following is None else lambda: begin(following))

        return begin(None)

    def look_up(self, user_id: str) -> UserView | None:
        user = self._run(self._users.find(UUID(user_id)))
        self._shown.append(repr(user))
        return user

    def welcomes(self) -> list[tuple[str, str]]:
        self.pass_time(MOMENT)
        return [(event.email, str(event.user_id)) for event in self.mail_server.welcomes]

    def wait_for_retries(self) -> None:
        async def until_nothing_is_due() -> None:
            async with asyncio.timeout(RETRY_TIMEOUT.total_seconds()):
                while await self._users.outbox.next_due() is not None:  # noqa: ASYNC110  # there is no event for it
                    await asyncio.sleep(MOMENT.total_seconds())

        self._loop.run(until_nothing_is_due())

    def unsent(self) -> list[Unsent]:
        self.pass_time(MOMENT)
        return [
            Unsent(entry.id, entry.event.email, is_dead_lettered=entry.due_at is None, reason=entry.reason or "")
            for entry in self._run(self._users.outbox.entries())
        ]

    def send_again(self, entry_id: int) -> None:
        assert self._run(self._users.outbox.retry(entry_id, now=self.now())), "it is missing or leased"

    def recognises(self, user_id: str, password: str) -> bool:
        [user] = (user for user in self._users.stored if str(user.id) == user_id)
        # This hasher uses no salt.
        return self._run(self._hasher.hash(Password.choose(password))) == user.password_hash

    def stored(self) -> bytes:
        return repr([asdict(user) for user in self._users.stored]).encode()

    def stored_hashes(self) -> list[str]:
        return [user.password_hash for user in self._users.stored]

    def shown(self) -> str:
        return "\n".join([*self._shown, *map(repr, self.mail_server.welcomes), *self._log.lines])

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        return self._loop.run(asyncio.wait_for(call, CALL_TIMEOUT.total_seconds()))
