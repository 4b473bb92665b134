import bcrypt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usersvc.adapters.bcrypt.hasher import MAX_COST
from usersvc.application.user_import import MAX_HASH_COST, parse_password_hash
from usersvc.domain.errors import ValidationFailed

REST = "DwS6fdNzX/WPAc/7zf2M/.qmrVXRRwhq.5Exus5uxZCvdNbH7pfDS"


def code_of(text: str) -> str:
    with pytest.raises(ValidationFailed) as error:
        parse_password_hash(text)
    [violation] = error.value.violations
    assert violation.field == "password_hash"
    assert not text or text not in violation.message
    return violation.code


@pytest.mark.parametrize("letter", "aby")
def test_bcrypt_hashes_are_accepted_up_to_the_highest_cost_of_the_setting(letter: str) -> None:
    for cost in range(4, 32):
        text = f"$2{letter}${cost:02}${REST}"
        if cost <= MAX_HASH_COST:
            assert parse_password_hash(text) == text
        else:
            assert code_of(text) == "cost-too-high"
    for pepper in ("", "1f78920f"):
        ours = f"$hmac-sha384-bcrypt${pepper}$2b$12${REST}"
        assert parse_password_hash(ours) == ours
    assert code_of(f"$hmac-sha384-bcrypt$$2b$17${REST}") == "cost-too-high"
    assert MAX_HASH_COST == MAX_COST


@pytest.mark.parametrize(
    "text",
    [
        "",
        REST,
        *(f"$2{letter}$10${REST}" for letter in ("", "x", "B")),
        *(f"$2b${cost}${REST}" for cost in ("03", "00", "32", "99", "4", "010", "1\u0662")),
        f"$2b$10${REST}.",
        f"$2b$10${REST}\n",
        f" $2b$10${REST}",
        # The last characters of the salt and of the digest encode fewer than six bits.
        f"$2b$10$*{REST[1:]}",
        f"$2b$10${REST[:21]}/{REST[22:]}",
        f"$2b$10${REST[:-1]}T",
        f"$2b$10${REST}$2b$10${REST}",
        f"$hmac-sha384-bcrypt$2b$10${REST}",
        f"$hmac-sha384-bcrypt$$2a$10${REST}",
        f"$hmac-sha384-bcrypt$1F78920F$2b$12${REST}",
        f"$hmac-sha384-bcrypt$$hmac-sha384-bcrypt$$2b$12${REST}",
        "$argon2id$v=19$m=65536,t=3,p=4$c29tZXNhbHQ$aGFzaA",
    ],
)
def test_other_texts_are_rejected(text: str) -> None:
    assert code_of(text) == "unknown-hash"


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=72))
def test_every_hash_made_by_bcrypt_is_accepted(password: bytes) -> None:
    made = bcrypt.hashpw(password, bcrypt.gensalt(4)).decode()
    assert parse_password_hash(made) == made
