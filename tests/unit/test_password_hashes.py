import re
import string

import bcrypt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usersvc.adapters.bcrypt.hasher import MAX_COST
from usersvc.application.password_hashes import MAX_HASH_COST, parse_password_hash
from usersvc.domain.errors import ValidationFailed

REST = "DwS6fdNzX/WPAc/7zf2M/.qmrVXRRwhq.5Exus5uxZCvdNbH7pfDS"


def code_of(text: str) -> str:
    with pytest.raises(ValidationFailed) as error:
        parse_password_hash(text)
    [violation] = error.value.violations
    assert violation.field == "password_hash"
    if text:
        assert text not in violation.message
    return violation.code


@pytest.mark.parametrize(
    "text",
    [
        *(f"$2{letter}${cost}${REST}" for letter in "aby" for cost in ("04", "10", "12", "16")),
        f"$hmac-sha384-bcrypt$$2b$12${REST}",
        f"$hmac-sha384-bcrypt$1f78920f$2b$12${REST}",
    ],
)
def test_complete_hashes_are_accepted_unchanged(text: str) -> None:
    assert parse_password_hash(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "secret",
        REST,
        f"$2$10${REST}",
        f"$2x$10${REST}",
        f"$2B$10${REST}",
        f"$2b$03${REST}",
        f"$2b$00${REST}",
        f"$2b$32${REST}",
        f"$2b$99${REST}",
        f"$2b$4${REST}",
        f"$2b$010${REST}",
        f"$2b$1\u0662${REST}",
        f"$2b$10${REST[:-1]}",
        f"$2b$10${REST}.",
        f"$2b$10${REST}\n",
        f" $2b$10${REST}",
        f"$2b$10$*{REST[1:]}",
        f"$2b$10${REST[:21]}/{REST[22:]}",
        f"$2b$10${REST[:-1]}T",
        f"$2b$10${REST}$2b$10${REST}",
        f"$hmac-sha384-bcrypt$2b$10${REST}",
        f"$hmac-sha384-bcrypt$$2a$10${REST}",
        f"$hmac-sha384-bcrypt$1F78920F$2b$12${REST}",
        f"$hmac-sha384-bcrypt$$hmac-sha384-bcrypt$$2b$12${REST}",
        "$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHQ$aGFzaA",
        "5f4dcc3b5aa765d61d8327deb882cf99",
    ],
)
def test_anything_else_is_rejected(text: str) -> None:
    assert code_of(text) == "unknown-hash"


@pytest.mark.parametrize("cost", range(17, 32))
def test_a_cost_that_takes_too_long_is_rejected(cost: int) -> None:
    assert code_of(f"$2y${cost}${REST}") == "cost-too-high"
    assert code_of(f"$hmac-sha384-bcrypt$$2b${cost}${REST}") == "cost-too-high"


def test_the_highest_cost_is_that_of_the_setting() -> None:
    assert MAX_HASH_COST == MAX_COST


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=72))
def test_every_hash_made_by_bcrypt_is_accepted(password: bytes) -> None:
    made = bcrypt.hashpw(password, bcrypt.gensalt(4)).decode()
    assert parse_password_hash(made) == made


@settings(max_examples=300)
@given(st.integers(7, 59), st.sampled_from(string.printable))
def test_a_character_outside_of_the_alphabet_is_rejected(position: int, letter: str) -> None:
    changed = f"$2b$10${REST}"[:position] + letter + f"$2b$10${REST}"[position + 1 :]
    alphabet = r"[./A-Za-z0-9]" if position not in {28, 59} else r"[.Oeu]" if position == 28 else r"[.CGKOSWaeimquy26]"
    if re.fullmatch(alphabet, letter):
        assert parse_password_hash(changed) == changed
    else:
        assert code_of(changed) == "unknown-hash"
