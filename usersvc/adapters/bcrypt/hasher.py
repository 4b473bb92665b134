"""Passwords through HMAC-SHA-384 and bcrypt, in threads of their own."""

import base64
import hashlib
import hmac
import re
from functools import cached_property, partial
from typing import Self

import bcrypt

from usersvc.adapters.bcrypt.executor import BoundedExecutor
from usersvc.domain.password import Password, PasswordHash

MIN_COST, MAX_COST = 4, 16
"""bcrypt accepts 4 to 31; at 17 a hash takes about nine seconds, too long for a request."""

_FOREIGN = re.compile(r"\$2[aby]\$")

# Without a pepper the key is public. It still separates these inputs from the plain SHA-384 of a password in another
# system's leak, which could otherwise be tried against these hashes without knowing the password.
_NO_PEPPER = b"usersvc"


class BcryptPasswordHasher:
    """A ``PasswordHasher``; an asynchronous context manager that starts no hash after its end.

    bcrypt reads at most 72 bytes and stops at a NUL. Its input is therefore the HMAC-SHA-384 of the password in
    base64: always 64 bytes (OWASP Password Storage Cheat Sheet, "Pre-Hashing Passwords with bcrypt"). A hash is
    ``$hmac-sha384-bcrypt$<pepper>$<bcrypt's own string>``, where <pepper> is a fingerprint of the pepper or empty.

    Hashes that other systems made of the password itself (``$2a$``, ``$2b$``, ``$2y$``) are verified as those systems
    do: only the first 72 bytes count. A password with a NUL never matches such a hash, because some systems stopped
    there and would accept any continuation.
    """

    def __init__(self, *, cost: int, workers: int, queue: int = 64, pepper: bytes | None = None) -> None:
        """Create a hasher, without threads yet.

        At most ``workers`` threads hash at once, and ``queue`` passwords wait; more are rejected. The ``pepper`` is a
        secret key that is stored apart from the hashes.
        """
        self._cost = cost
        self._pepper = pepper
        self._threads = BoundedExecutor(workers=workers, queue=queue, job_seconds=0.25 * 2 ** (cost - 12))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        """Cancel waiting jobs; running jobs finish without being awaited."""
        self._threads.close()

    async def hash(self, password: Password) -> PasswordHash:
        return await self._threads.run(partial(self._hash, password))

    async def verify(self, password: Password, password_hash: PasswordHash) -> bool:
        """Whether the hash was made from this password; at least as slow as ``hash`` for every hash and outcome."""
        return await self._threads.run(partial(self._verify, password, password_hash))

    @cached_property
    def _prefix(self) -> str:
        if not self._pepper:
            return "$hmac-sha384-bcrypt$"
        # Slow to compute, so that it does not help to guess the pepper. Only the hashing threads read it.
        salt = b"usersvc pepper fingerprint"
        return f"$hmac-sha384-bcrypt${hashlib.scrypt(self._pepper, salt=salt, n=2**14, r=8, p=1, dklen=4).hex()}"

    def _hash(self, password: Password) -> PasswordHash:
        hashed = bcrypt.hashpw(self._prepared(password), bcrypt.gensalt(self._cost)).decode("ascii")
        return PasswordHash(self._prefix + hashed)

    def _verify(self, password: Password, password_hash: PasswordHash) -> bool:
        computed = MIN_COST
        try:
            secret, hashed = self._comparable(password, password_hash)
            equal = bcrypt.checkpw(secret, hashed)
            computed = int(hashed[4:6])
            return equal and b"\0" not in secret
        except ValueError:
            # bcrypt's own text may repeat a part of the hash.
            raise ValueError("a hash of another scheme or pepper") from None
        finally:
            # One computation at each cost in between adds up to the configured cost: 2^c + 2^c + ... + 2^(n-1) = 2^n.
            for cost in range(computed, self._cost):
                bcrypt.hashpw(b"", bcrypt.gensalt(cost))

    def _comparable(self, password: Password, password_hash: PasswordHash) -> tuple[bytes, bytes]:
        """The input for bcrypt, and the stored bcrypt string to compare with."""
        if _FOREIGN.match(password_hash):
            return password.clear.encode("utf-8")[:72], f"$2b${password_hash[4:]}".encode("ascii")
        if not password_hash.startswith(f"{self._prefix}$"):
            raise ValueError
        return self._prepared(password), password_hash.removeprefix(self._prefix).encode("ascii")

    def _prepared(self, password: Password) -> bytes:
        key = self._pepper or _NO_PEPPER
        return base64.b64encode(hmac.digest(key, password.clear.encode("utf-8"), "sha384"))
