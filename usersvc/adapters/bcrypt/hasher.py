"""Passwords through HMAC-SHA-384 and bcrypt, in threads of their own."""

import base64
import hashlib
import hmac
import re
from functools import cached_property, partial
from types import TracebackType
from typing import Self

import bcrypt

from usersvc.adapters.bcrypt.executor import BoundedExecutor
from usersvc.domain.password import Password, PasswordHash

MIN_COST, MAX_COST = 4, 16
"""bcrypt accepts 4 to 31; at 17 a hash takes about nine seconds, which is no service any more."""

BCRYPT_READS = 72
"""Bytes of a password that decide bcrypt's hash; those behind are as if they were not there."""

_FOREIGN = re.compile(r"\$2[aby]\$")

# Without a pepper the key is public. It still keeps these inputs apart from the plain SHA-384 of a password in
# somebody else's leak, which could otherwise be tried against our hashes without knowing the password.
_NO_PEPPER = b"usersvc"


class BcryptPasswordHasher:
    """A ``PasswordHasher``; an asynchronous context manager after whose end no hash is begun.

    bcrypt reads at most 72 bytes and stops at a NUL. Its input is therefore the HMAC-SHA-384 of the password in
    base64: always 64 bytes, of which all of the password decides each one (OWASP Password Storage Cheat Sheet,
    "Pre-Hashing Passwords with bcrypt").

    A hash reads ``$hmac-sha384-bcrypt$<pepper>$<bcrypt's own string>``, where <pepper> is a fingerprint of the
    pepper or empty. So a hash names its scheme, and cost and pepper can change without breaking those made before.

    Hashes that other systems have made of the password itself (``$2a$``, ``$2b$``, ``$2y$``) are verified as those did:
    only the first 72 bytes count. The three are one: what sets them apart are old mistakes, of which only one still
    shows: a password of 255 bytes or more that OpenBSD hashed before 2014 is not known again. A password with a NUL is
    none of theirs, as some stopped there, and ``secret`` is not to be told from what begins with it.
    """

    def __init__(self, *, cost: int, workers: int, queue: int = 64, pepper: bytes | None = None) -> None:
        """Make a hasher.

        Args:
            cost: bcrypt's, from ``MIN_COST`` to ``MAX_COST``; one more doubles the time.
            workers: how many threads hash at once; more than there are cores only adds waiting.
            queue: how many passwords may wait for a thread; beyond that they are refused.
            pepper: a secret key that is kept apart from the hashes.
        """
        self._cost = cost
        self._pepper = pepper
        self._key = pepper or _NO_PEPPER
        self._threads = BoundedExecutor(workers=workers, queue=queue, expected=0.25 * 2 ** (cost - 12))

    async def __aenter__(self) -> Self:
        """Nothing to open: the threads start when they are needed."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Cancel waiting jobs; running jobs finish without being awaited."""
        self._threads.close()

    async def hash(self, password: Password) -> PasswordHash:
        return await self._threads.run(partial(self._hash, password))

    async def verify(self, password: Password, password_hash: PasswordHash) -> bool:
        """Whether the hash was made from this password, at any cost.

        It takes as long as ``hash``, or longer for a hash of a higher cost: also for a hash that is cheaper or cannot
        be verified.

        Raises:
            QueueFull: the queue is full; immediately, before any computation.
            ValueError: the hash is of another scheme, or was made with another pepper.
        """
        return await self._threads.run(partial(self._verify, password, password_hash))

    @cached_property
    def _pepper_id(self) -> str:
        # Slow, and so for the threads that hash, which are the only ones to ask.
        return _fingerprint(self._pepper) if self._pepper else ""

    def _hash(self, password: Password) -> PasswordHash:
        hashed = bcrypt.hashpw(self._prepared(password), bcrypt.gensalt(self._cost)).decode("ascii")
        return PasswordHash(f"$hmac-sha384-bcrypt${self._pepper_id}{hashed}")

    def _verify(self, password: Password, password_hash: PasswordHash) -> bool:
        computed = MIN_COST
        try:
            secret, hashed = self._comparable(password, password_hash)
            equal = bcrypt.checkpw(secret, hashed)
            computed = int(hashed[4:6])
            return equal and not (_FOREIGN.match(password_hash) and b"\0" in secret)
        except ValueError:
            # bcrypt's own text may repeat a part of the hash.
            raise ValueError("a hash of another scheme or pepper") from None
        finally:
            # One computation at each cost in between adds up to the configured cost: 2^c + 2^c + ... + 2^(n-1) = 2^n.
            for cost in range(computed, self._cost):
                bcrypt.hashpw(b"", bcrypt.gensalt(cost))

    def _comparable(self, password: Password, password_hash: PasswordHash) -> tuple[bytes, bytes]:
        """The input for bcrypt and the stored bcrypt string to compare with.

        Raises:
            ValueError: the hash is of another scheme, or was made with another pepper.
        """
        if _FOREIGN.match(password_hash):
            return password.clear.encode("utf-8")[:BCRYPT_READS], f"$2b${password_hash[4:]}".encode("ascii")
        scheme = f"$hmac-sha384-bcrypt${self._pepper_id}$"
        if not password_hash.startswith(scheme):
            raise ValueError
        return self._prepared(password), password_hash[len(scheme) - 1 :].encode("ascii")

    def _prepared(self, password: Password) -> bytes:
        return base64.b64encode(hmac.digest(self._key, password.clear.encode("utf-8"), "sha384"))


def _fingerprint(pepper: bytes) -> str:
    """Which pepper it was, in 32 bits: enough to tell two apart; slow, so that it helps nobody to guess one."""
    return hashlib.scrypt(pepper, salt=b"usersvc pepper fingerprint", n=2**14, r=8, p=1, dklen=4).hex()
