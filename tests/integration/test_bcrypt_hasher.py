import asyncio
import threading
from collections.abc import Callable

import bcrypt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from usersvc.adapters.bcrypt_hasher import BcryptPasswordHasher
from usersvc.domain.user import Password, PasswordHash


async def test_a_hash_names_its_scheme_and_cost_and_verifies() -> None:
    async with BcryptPasswordHasher(cost=4, workers=1) as hasher:
        hashed = await hasher.hash(Password("correct horse battery"))

        assert hashed.startswith("$hmac-sha384-bcrypt$$2b$04$")
        assert await hasher.verify(Password("correct horse battery"), hashed)
        assert not await hasher.verify(Password("correct horse batterx"), hashed)


async def test_two_hashes_of_one_password_differ() -> None:
    async with BcryptPasswordHasher(cost=4, workers=1) as hasher:
        assert await hasher.hash(Password("same")) != await hasher.hash(Password("same"))


@pytest.mark.parametrize("password", ["x" * 256, "🔑" * 256, "NUL\x00 in the middle", "\x00" * 8])
async def test_all_of_a_password_counts(password: str) -> None:
    async with BcryptPasswordHasher(cost=4, workers=1) as hasher:
        hashed = await hasher.hash(Password(password))

        assert await hasher.verify(Password(password), hashed)
        assert not await hasher.verify(Password(password[:-1] + "y"), hashed)
        assert not await hasher.verify(Password(password + "y"), hashed)
        assert not await hasher.verify(Password(password[:72]), hashed) or len(password) <= 72


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(max_size=256))
def test_any_password_can_be_hashed(password: str) -> None:
    hasher = BcryptPasswordHasher(cost=4, workers=1)
    hashed = hasher._hash(Password(password))
    assert hasher._verify(Password(password), hashed)


async def test_hashes_made_at_another_cost_still_verify() -> None:
    async with BcryptPasswordHasher(cost=4, workers=1) as old, BcryptPasswordHasher(cost=5, workers=1) as new:
        assert await new.verify(Password("password"), await old.hash(Password("password")))


async def test_a_pepper_is_needed_to_verify_and_is_named_by_a_fingerprint() -> None:
    async with (
        BcryptPasswordHasher(cost=4, workers=1, pepper=b"one pepper or so") as one,
        BcryptPasswordHasher(cost=4, workers=1, pepper=b"another pepper..") as other,
        BcryptPasswordHasher(cost=4, workers=1) as none,
    ):
        hashed = await one.hash(Password("password"))

        assert await one.verify(Password("password"), hashed)
        assert "pepper" not in hashed
        for hasher in (other, none):
            with pytest.raises(ValueError, match="another scheme or pepper"):
                await hasher.verify(Password("password"), hashed)
        with pytest.raises(ValueError, match="another scheme or pepper"):
            await one.verify(Password("password"), PasswordHash("$2b$04$" + "a" * 53))


async def test_bcrypt_runs_beside_the_event_loop_and_never_more_at_once_than_there_are_workers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    at_work = 0
    most = 0
    gate = threading.Semaphore(0)
    lock = threading.Lock()
    real: Callable[[bytes, bytes], bytes] = bcrypt.hashpw

    def counted(password: bytes, salt: bytes) -> bytes:
        nonlocal at_work, most
        assert threading.current_thread() is not threading.main_thread()
        with lock:
            at_work += 1
            most = max(most, at_work)
        gate.acquire()
        with lock:
            at_work -= 1
        return real(password, salt)

    monkeypatch.setattr(bcrypt, "hashpw", counted)
    async with BcryptPasswordHasher(cost=4, workers=2) as hasher:
        hashing = [asyncio.create_task(hasher.hash(Password(f"password {n}"))) for n in range(6)]
        # All six wait for the gate, and this loop still runs: it is this loop that opens it.
        await asyncio.sleep(0)
        for _ in range(6):
            gate.release()
        await asyncio.gather(*hashing)

    assert 1 <= most <= 2
