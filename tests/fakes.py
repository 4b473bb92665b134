"""Working implementations of the ports for tests that need no real technology."""

import hashlib
from datetime import UTC, datetime
from typing import Any

from aiohttp import web

from usersvc.adapters.memory import InMemoryUsers
from usersvc.application.ports import Store
from usersvc.application.readiness import Readiness
from usersvc.application.registration import UserRegistrationService
from usersvc.domain.password import Password, PasswordHash
from usersvc.domain.user import User
from usersvc.web.app import create_app

NOW = datetime(2026, 1, 31, 9, 30, 0, 123, tzinfo=UTC)


def person(email: str = "alice@example.com", *, at: datetime = NOW) -> User:
    """A newly registered user."""
    registration = User.register(email=email, password="correct horse battery", age=30)
    return registration.complete(PasswordHash("$hash"), at=at)


class QuickHasher:
    """A ``PasswordHasher`` without bcrypt's cost."""

    async def hash(self, password: Password) -> PasswordHash:
        return PasswordHash(f"$quick${hashlib.sha256(password.clear.encode()).hexdigest()}")

    async def verify(self, password: Password, password_hash: PasswordHash) -> bool:
        return password_hash == await QuickHasher.hash(self, password)


def quick_service(users: Store | None = None) -> UserRegistrationService:
    """The use case of registering with fakes, without delivery of mails."""
    return UserRegistrationService(users or InMemoryUsers(), QuickHasher())


def quick_app(
    store: Store | None = None,
    *,
    service: UserRegistrationService | None = None,
    **options: Any,
) -> web.Application:
    """The application with fakes."""
    store = store or InMemoryUsers()
    return create_app(service or quick_service(store), store, Readiness(store), **options)
