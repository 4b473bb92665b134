"""The use case of registering a user."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from usersvc.application.clock import utc_now
from usersvc.application.idempotency import EarlierRegistration, IdempotencyKey, IdempotencyKeyUsed
from usersvc.application.ports import PasswordHasher, Users
from usersvc.application.read_models import UserView, view_of
from usersvc.domain.password import Password
from usersvc.domain.user import Registration, User


class IdempotencyKeyReused(Exception):
    """The idempotency key was used before, for another registration."""


@dataclass(frozen=True, slots=True)
class Registered:
    """The result of a registration."""

    user: UserView
    replayed: bool = False
    """Whether the user had been registered before, under the same idempotency key."""


class UserRegistrationService:
    """Registers users; ``on_registered`` is called when there may be a new event in the outbox."""

    def __init__(
        self,
        users: Users,
        hasher: PasswordHasher,
        *,
        password_min_length: int = Password.MIN_LENGTH,
        clock: Callable[[], datetime] = utc_now,
        on_registered: Callable[[], None] = lambda: None,
    ) -> None:
        self._users = users
        self._hasher = hasher
        self._clock = clock
        self._on_registered = on_registered
        self.password_min_length = password_min_length

    async def register(self, *, email: str, password: str, age: int, key: str | None = None) -> Registered:
        """Register a user: when this returns, the user and the event that leads to the welcome mail are stored.

        With an idempotency key (in visible ASCII), a repeat returns the first result; concurrent repeats register one
        user. A failure does not use up the key. After a cancellation the user may have been stored.

        Raises:
            ValidationFailed: with all violations.
            IdempotencyKeyReused: the key was used for another registration.
            EmailAlreadyRegistered: the mailbox belongs to a registered user.
            QueueFull: the hashing queue is full.
            StorageUnavailable: it is not known whether the user was stored.
        """
        registration = User.register(
            email=email, password=password, age=age, password_min_length=self.password_min_length
        )
        if key is None:
            return Registered(await self._store(registration))
        named = IdempotencyKey.named(key)
        earlier = await self._users.registered_with(named, at=self._clock())
        if earlier is None:
            try:
                return Registered(await self._store(registration, named))
            except IdempotencyKeyUsed:
                # A concurrent request with the same key was faster.
                earlier = await self._users.registered_with(named, at=self._clock())
        if earlier is None or not await self._is_same(registration, earlier):
            raise IdempotencyKeyReused
        return Registered(earlier.user, replayed=True)

    async def _is_same(self, registration: Registration, earlier: EarlierRegistration) -> bool:
        # Verified first, so that a repeat takes as long as a registration and its time reveals no registered data.
        try:
            same_password = await self._hasher.verify(registration.password, earlier.password_hash)
        except ValueError:
            # The pepper has changed, so the password cannot be verified.
            return False
        same_user = (registration.email.typed, registration.age.years) == (earlier.user["email"], earlier.user["age"])
        return same_user and same_password

    async def _store(self, registration: Registration, key: IdempotencyKey | None = None) -> UserView:
        password_hash = await self._hasher.hash(registration.password)
        # The clock is read after the slow step, right before storing, so that times follow positions.
        user = registration.complete(password_hash, at=self._clock())
        try:
            await self._users.add(user, key=key)
        finally:
            # Also after a failure or a cancellation: the user may have been stored.
            self._on_registered()
        return view_of(user)
