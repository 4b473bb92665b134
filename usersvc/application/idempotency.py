"""Idempotency keys: repeating a registration without registering twice."""

import hashlib
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Self

from usersvc.application.read_models import UserView
from usersvc.domain.password import PasswordHash

KEY_LIFETIME = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class IdempotencyKey:
    """The key of a registration request (draft-ietf-httpapi-idempotency-key-header)."""

    digest: str
    """SHA-256 of the key, in hexadecimal: the key itself could contain personal data."""

    @classmethod
    def named(cls, text: str) -> Self:
        """The key that a client sent, in visible ASCII."""
        return cls(hashlib.sha256(text.encode("ascii")).hexdigest())


class IdempotencyKeyUsed(Exception):
    """A registration with this key has succeeded already."""


@dataclass(frozen=True, slots=True)
class EarlierRegistration:
    """The registration that used a key first, to be replayed and compared with repeats."""

    user: UserView
    password_hash: PasswordHash = field(repr=False)
