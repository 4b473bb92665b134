import asyncio
import base64
import hmac
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


@pytest.mark.parametrize(("pepper", "key"), [(None, b"usersvc"), (b"sixteen or more!", b"sixteen or more!")])
async def test_what_bcrypt_gets_is_the_keyed_hmac_of_the_password(pepper: bytes | None, key: bytes) -> None:
    async with BcryptPasswordHasher(cost=4, workers=1, pepper=pepper) as hasher:
        hashed = await hasher.hash(Password("pässwörd 🔑"))

    prepared = base64.b64encode(hmac.new(key, "pässwörd 🔑".encode(), "sha384").digest())
    assert bcrypt.checkpw(prepared, hashed[hashed.index("$2b$") :].encode())


async def test_hashes_that_are_stored_somewhere_verify_forever() -> None:
    async with (
        BcryptPasswordHasher(cost=4, workers=1) as plain,
        BcryptPasswordHasher(cost=4, workers=1, pepper=b"sixteen or more!") as peppered,
    ):
        assert await plain.verify(
            Password("correct horse"),
            PasswordHash("$hmac-sha384-bcrypt$$2b$04$jRKga945DDoaYpj64cW1Guy78H1DuyzOPlIwcmh/xXLrFcWaq1pAa"),
        )
        assert await peppered.verify(
            Password("correct horse"),
            PasswordHash("$hmac-sha384-bcrypt$1f78920f$2b$04$aqbVU1RC0fsQef/FQArkieEcy7unHZcM42QZoycrXOO65h1ZOvNjO"),
        )


async def test_closing_begins_nothing_new_and_ends_what_is_in_hand() -> None:
    hasher = BcryptPasswordHasher(cost=4, workers=1)
    async with hasher:
        hashed = await hasher.hash(Password("in hand"))
    assert hashed
    with pytest.raises(RuntimeError):
        await hasher.hash(Password("too late"))
