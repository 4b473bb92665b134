"""The use cases around registration."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from uuid import UUID

from usersvc.application.clock import utc_now
from usersvc.application.idempotency import EarlierRegistration, IdempotencyKey, IdempotencyKeyUsed
from usersvc.application.keyset import in_pages
from usersvc.application.ports import PasswordHasher, Users
from usersvc.application.read_models import Order, Page, UserView, view_of
from usersvc.domain.errors import DomainError, Violation
from usersvc.domain.user import EmailAddress, Password, Registration, User

CHECK_INTERVAL = 1.0
"""Seconds from the start of one check of the store to the next: no outcome that is reported is older."""

Waiting = Callable[[], AbstractContextManager[None]]
"""What is entered while a password is hashed, and nothing has been stored yet: whoever is waited for by nobody any more
can be given up there, and what it raises is raised."""


class IdempotencyKeyReused(DomainError):
    """The key has named another registration before."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a registration under a key has come to."""

    user: UserView
    replayed: bool
    """Whether it had come to that before."""


class UserRegistrationService:
    """Registers people and shows who is registered."""

    def __init__(
        self,
        users: Users,
        hasher: PasswordHasher,
        *,
        password_min_length: int = Password.MIN_LENGTH,
        clock: Callable[[], datetime] = utc_now,
        on_registered: Callable[[], None] = lambda: None,
    ) -> None:
        """Make the service.

        Args:
            users: where users are kept.
            hasher: makes a password fit to be kept.
            password_min_length: in code points; at least ``Password.MIN_LENGTH``.
            clock: the time, in UTC.
            on_registered: called when a new event is in the outbox; must return at once.
        """
        self._users = users
        self._hasher = hasher
        self._clock = clock
        self._on_registered = on_registered
        self.password_min_length = password_min_length
        self._check: asyncio.Future[None] | None = None
        self._check_started = 0.0

    async def register(self, *, email: str, password: str, age: int, waiting: Waiting = nullcontext) -> UserView:
        """Make a person a user; when this returns the user is stored, and so is that the person is to be told.

        Args:
            email: as typed.
            password: as typed, in the clear.
            age: in whole years.
            waiting: see ``Waiting``.

        Raises:
            ValidationFailed: with every rule that the data break.
            EmailAlreadyRegistered: the mailbox belongs to somebody already.
            QueueFull: too many wait already.
            StorageUnavailable: it is not known whether the user was stored.
        """
        registration = User.register(
            email=email, password=password, age=age, password_min_length=self.password_min_length
        )
        return await self._store(registration, waiting)

    async def register_once(
        self, *, email: str, password: str, age: int, key: str, waiting: Waiting = nullcontext
    ) -> Outcome:
        """Make a person a user, or tell again what came of it when the same was asked under the same key before.

        Two at once are one registration. A failure uses up no key. What was asked before is known by the user that it
        made, the password by its hash: nothing more is kept.

        Args:
            email: as typed.
            password: as typed, in the clear.
            age: in whole years.
            key: visible ASCII; best a fresh UUID.
            waiting: see ``Waiting``.

        Raises:
            ValidationFailed: with every rule that the data break.
            IdempotencyKeyReused: the key named another registration.
            EmailAlreadyRegistered: the mailbox belongs to somebody already.
            QueueFull: too many wait already.
            StorageUnavailable: it is not known whether the user was stored.
        """
        registration = User.register(
            email=email, password=password, age=age, password_min_length=self.password_min_length
        )
        named = IdempotencyKey.named(key)
        earlier = await self._users.registered_with(named, at=self._clock())
        if earlier is None:
            try:
                return Outcome(await self._store(registration, waiting, named), replayed=False)
            except IdempotencyKeyUsed:
                # Another was quicker.
                earlier = await self._users.registered_with(named, at=self._clock())
        if earlier is None or not await self._is_same(registration, earlier, waiting):
            raise IdempotencyKeyReused
        return Outcome(earlier.user, replayed=True)

    async def _is_same(self, registration: Registration, earlier: EarlierRegistration, waiting: Waiting) -> bool:
        """Whether a registration repeats an earlier one.

        The password is verified in any case: a repeat costs one hash, as a registration does, so that neither its price
        nor its time helps to guess what was registered.
        """
        try:
            with waiting():
                same_password = await self._hasher.verify(registration.password, earlier.password_hash)
        except ValueError:
            # The pepper has changed since, so the password cannot be verified.
            return False
        same_user = (registration.email.typed, registration.age.years) == (earlier.user["email"], earlier.user["age"])
        return same_user and same_password

    async def _store(self, registration: Registration, waiting: Waiting, key: IdempotencyKey | None = None) -> UserView:
        with waiting():
            password_hash = await self._hasher.hash(registration.password)
        # The time is read after the slow step, right before the user is stored, so that times follow positions.
        user = registration.complete(password_hash, at=self._clock())
        await self._users.add(user, key=key)
        self._on_registered()
        return view_of(user)

    def violations(
        self, *, email: str | None = None, password: str | None = None, age: int | None = None
    ) -> tuple[Violation, ...]:
        """The rules that these data alone break, for an answer that names every broken field at once."""
        return User.violations(email=email, password=password, age=age, password_min_length=self.password_min_length)

    async def find(self, user_id: UUID) -> UserView | None:
        """The user with this id, if there is one.

        Raises:
            StorageUnavailable: the store cannot answer.
        """
        return await self._users.find(user_id)

    async def page(
        self,
        *,
        limit: int,
        order: Order = Order.ASC,
        after: int | None = None,
        email: EmailAddress | None = None,
    ) -> Page:
        """At most ``limit`` users, in order of registration, beginning behind position ``after``.

        Args:
            limit: at least 1.
            order: the oldest or the newest first.
            after: ``next_after`` of the page before.
            email: only the user whose mailbox this is.

        Raises:
            StorageUnavailable: the store cannot answer.
        """
        return await self._users.page(
            limit=limit, order=order, after=after, mailbox=None if email is None else email.mailbox
        )

    async def batches(
        self,
        *,
        order: Order = Order.ASC,
        after: int | None = None,
        email: EmailAddress | None = None,
        limit: int | None = None,
    ) -> AsyncGenerator[bytes, None]:
        """All users as lines of JSON, up to ``BATCH`` of them at a time.

        As with pages, users who are added or removed meanwhile cause no other user to be repeated or skipped. A caller
        may take any time between two batches.

        Args:
            order: the oldest or the newest first.
            after: start after this position.
            email: only the user with this mailbox.
            limit: the maximum number of users; None for all.

        Raises:
            StorageUnavailable: the store cannot answer; also after some batches.
        """
        read = partial(self._users.page, order=order, mailbox=None if email is None else email.mailbox)
        async for page in in_pages(read, lambda page: page.next_after, after=after, limit=limit):
            yield page.lines + b"\n"

    async def check(self) -> None:
        """Return if registrations can be stored and read.

        The store is asked at most once in ``CHECK_INTERVAL``, as the check writes to the disk and any client may cause
        it: all callers within that time share one check and its outcome, success or failure.

        Raises:
            StorageUnavailable: they cannot.
        """
        now = asyncio.get_running_loop().time()
        if self._check is None or (self._check.done() and now - self._check_started >= CHECK_INTERVAL):
            self._check_started = now
            self._check = asyncio.ensure_future(self._users.check())
            self._check.add_done_callback(_retrieve_exception)
        await asyncio.shield(self._check)


def _retrieve_exception(future: asyncio.Future[None]) -> None:
    """Keep asyncio from reporting an exception when all callers have been cancelled."""
    if not future.cancelled():
        future.exception()
