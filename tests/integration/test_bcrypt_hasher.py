"""Hashes made and verified with bcrypt."""

import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TypeVar

import bcrypt
import pytest
from bcrypt import gensalt, hashpw

from usersvc.adapters.bcrypt.hasher import BcryptPasswordHasher
from usersvc.domain.password import Password, PasswordHash

T = TypeVar("T")


@pytest.fixture
async def hasher() -> AsyncIterator[BcryptPasswordHasher]:
    async with BcryptPasswordHasher(cost=4, workers=1) as hasher:
        yield hasher
    with pytest.raises(RuntimeError, match="shutdown"):
        await hasher.hash(Password("too late"))


async def test_a_hash_names_its_scheme_and_cost_and_has_a_salt(hasher: BcryptPasswordHasher) -> None:
    hashed = await hasher.hash(Password("correct horse battery"))

    assert hashed.startswith("$hmac-sha384-bcrypt$$2b$04$")
    assert hashed != await hasher.hash(Password("correct horse battery"))


@pytest.mark.parametrize("password", ["x" * 256, "🔑" * 256, "NUL\x00 in the middle", "\x00" * 8])
async def test_all_of_a_password_counts(password: str, hasher: BcryptPasswordHasher) -> None:
    hashed = await hasher.hash(Password(password))

    assert await hasher.verify(Password(password), hashed)
    assert not await hasher.verify(Password(password[:-1] + "y"), hashed)
    assert not await hasher.verify(Password(password + "y"), hashed)
    assert not await hasher.verify(Password(password[:72]), hashed) or len(password) <= 72


async def test_a_hash_verifies_only_with_its_pepper() -> None:
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


async def test_hashes_stored_by_earlier_versions_verify() -> None:
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


@pytest.fixture
def rounds_done(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of rounds of each computation of bcrypt; none of them runs in the event loop's thread."""
    rounds: list[int] = []
    threads: set[int] = set()

    def counting(compute: Callable[[bytes, bytes], T]) -> Callable[[bytes, bytes], T]:
        def compute_and_count(password: bytes, salt: bytes) -> T:
            result = compute(password, salt)
            rounds.append(2 ** int(salt[4:6]))
            threads.add(threading.get_ident())
            return result

        return compute_and_count

    for compute in (bcrypt.hashpw, bcrypt.checkpw):
        monkeypatch.setattr(bcrypt, compute.__name__, counting(compute))
    yield rounds
    assert rounds
    assert threading.get_ident() not in threads


@pytest.mark.parametrize(
    ("stored_cost", "rounds"),
    [(4, 2**8), (7, 2**8), (8, 2**8), (9, 2**9)],
    ids=["lowest", "lower", "same", "higher"],
)
@pytest.mark.parametrize("password", ["the right one", "a wrong one", "with a \0"])
@pytest.mark.parametrize("foreign", [False, True])
async def test_verifying_costs_at_least_what_hashing_costs(
    rounds_done: list[int], stored_cost: int, rounds: int, password: str, foreign: bool
) -> None:
    async with BcryptPasswordHasher(cost=stored_cost, workers=1) as other:
        own = await other.hash(Password("the right one"))
    stored = PasswordHash(hashpw(b"the right one", gensalt(stored_cost)).decode()) if foreign else own
    rounds_done.clear()
    async with BcryptPasswordHasher(cost=8, workers=1) as hasher:
        assert await hasher.verify(Password(password), stored) == (password == "the right one")
        assert sum(rounds_done) == rounds


async def test_a_hash_that_cannot_be_verified_costs_as_much(rounds_done: list[int]) -> None:
    async with BcryptPasswordHasher(cost=8, workers=1) as hasher:
        with pytest.raises(ValueError, match="another scheme or pepper"):
            await hasher.verify(Password("password"), PasswordHash("$hmac-sha384-bcrypt$12345678$2b$04$" + "a" * 53))
    # Without the computation at the lowest cost.
    assert sum(rounds_done) == 2**8 - 2**4


# --- hashes of other systems ----------------------------------------------------------------------------------------

LONG = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


@pytest.mark.parametrize(
    ("password", "password_hash"),
    [
        # From crypt_blowfish's own tests.
        ("U*U*U", "$2a$05$XXXXXXXXXXXXXXXXXXXXXOAcXxm9kjPGEMsLznoKqmqw7tc8WCx4a"),
        (f"{LONG}chars after 72 are ignored", "$2a$05$abcdefghijklmnopqrstuu5s2v8.iXieOjg/.AySBTTZIIVFJeBui"),
        # Made with crypt() of libxcrypt.
        ("rasmuslerdorf", "$2y$07$BCryptRequires22Chrcte/VlQH0piJtjXl.0t1XkA8pw9dMXTpOq"),
        ("pässwörd 🔑", "$2a$05$abcdefghijklmnopqrstuuJle.iZ0HydI0pt1p.fYQNcC2ygoDkde"),
        ("é" * 40, "$2b$05$abcdefghijklmnopqrstuu9CyuiEyTnupb4rnoYIlshaDzoYa6ZaS"),
    ],
)
@pytest.mark.parametrize("pepper", [None, b"sixteen or more!"])
async def test_hashes_of_other_systems_verify_with_or_without_a_pepper(
    password: str, password_hash: str, pepper: bytes | None
) -> None:
    async with BcryptPasswordHasher(cost=4, workers=1, pepper=pepper) as hasher:
        assert await hasher.verify(Password(password), PasswordHash(password_hash))
        assert not await hasher.verify(Password(f"x{password}"), PasswordHash(password_hash))


@pytest.mark.parametrize(
    ("password", "read"),
    [("x" * 72, "x" * 72), ("x" * 73, "x" * 72), ("🔑" * 256, "🔑" * 18), ("x" * 71 + "é", "x" * 71 + "é")],
)
async def test_only_the_first_72_bytes_count_in_hashes_of_other_systems(
    password: str, read: str, hasher: BcryptPasswordHasher
) -> None:
    foreign = PasswordHash(hashpw(read.encode()[:72], gensalt(4)).decode())
    assert await hasher.verify(Password(password), foreign)
    assert not await hasher.verify(Password(f"y{password}"), foreign)


@pytest.mark.parametrize("password", ["secret\0", "secret\0more", "\0secret", "\0"])
@pytest.mark.parametrize("hashed", [b"secret", b"secret\0more", b""])
async def test_a_password_with_a_nul_does_not_match_a_hash_of_another_system(
    password: str, hashed: bytes, hasher: BcryptPasswordHasher
) -> None:
    foreign = PasswordHash(hashpw(hashed, gensalt(4)).decode())
    assert not await hasher.verify(Password(password), foreign)


@pytest.mark.parametrize("rest", ["04$short", "04$" + "a" * 53, "x", "", "04$" + "é" * 53])
async def test_a_malformed_hash_is_an_error_that_does_not_repeat_it(rest: str, hasher: BcryptPasswordHasher) -> None:
    with pytest.raises(ValueError, match=r"^a hash of another scheme or pepper$"):
        await hasher.verify(Password("password"), PasswordHash(f"$2b${rest}"))
