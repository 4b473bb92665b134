"""Idempotency keys: repeating a registration without registering twice."""

import hashlib
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Self

from usersvc.application.read_models import UserView
from usersvc.domain.errors import DomainError
from usersvc.domain.user import PasswordHash

KEY_LIFETIME = timedelta(hours=24)
"""How long a registration can be repeated under its idempotency key."""


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """What a client calls one registration, so that a repeat is known for one.

    See draft-ietf-httpapi-idempotency-key-header.
    """

    digest: str
    """SHA-256 of the key alone, in hexadecimal: the key itself may say more than it should."""

    @classmethod
    def named(cls, text: str) -> Self:
        """The key that a client has sent, as visible ASCII."""
        return cls(hashlib.sha256(text.encode("ascii")).hexdigest())


class IdempotencyKeyUsed(DomainError):
    """A registration under this key has succeeded already."""


@dataclass(frozen=True, slots=True)
class EarlierRegistration:
    """What a registration under a key came to, and what tells whether another one is the same."""

    user: UserView
    password_hash: PasswordHash = field(repr=False)
