"""Importing and exporting users, on stores in memory."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import bcrypt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from usersvc.adapters.bcrypt.hasher import MAX_COST
from usersvc.adapters.memory import InMemoryUsers
from usersvc.application.user_import import MAX_HASH_COST, ImportRow, UserImport, parse_password_hash
from usersvc.domain.errors import ValidationFailed, Violation
from usersvc.domain.password import PasswordHash
from usersvc.domain.user import User

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
REST = "DwS6fdNzX/WPAc/7zf2M/.qmrVXRRwhq.5Exus5uxZCvdNbH7pfDS"
HASH = PasswordHash(f"$2y$10${REST}")
OTHER_HASH = PasswordHash(f"$2y$11${REST}")
ID, OTHER_ID = uuid4(), uuid4()


@pytest.fixture
def users() -> InMemoryUsers:
    return InMemoryUsers()


@pytest.fixture(params=["import", "dry run"])
def importing(request: pytest.FixtureRequest, users: InMemoryUsers) -> UserImport:
    """An import and a dry run have the same outcomes."""
    return import_into(users) if request.param == "import" else import_into(InMemoryUsers(), users)


def import_into(users: InMemoryUsers, *others: InMemoryUsers) -> UserImport:
    return UserImport(users, archives=[store.archive for store in (users, *others)], clock=lambda: NOW)


def one(
    email: str = "alice@example.com",
    *,
    age: int = 30,
    password_hash: str = HASH,
    id: UUID | None = None,  # noqa: A002  # as the field is called
    registered_at: datetime | None = None,
) -> ImportRow:
    return ImportRow(email, age, password_hash, id, registered_at)


async def outcomes_of(importing: UserImport, *rows: ImportRow | ValidationFailed) -> list[str]:
    """For each row: imported, already there, or the codes of the violations."""
    return [
        outcome if isinstance(outcome, str) else " ".join(violation.code for violation in outcome.violations)
        for outcome in await importing.take(rows)
    ]


async def test_new_users_are_imported_once(importing: UserImport) -> None:
    people = [one(), one("bob@example.com", id=ID), one("carol@example.com", registered_at=NOW - timedelta(days=1))]
    assert await outcomes_of(importing, *people) == ["imported"] * 3
    assert await outcomes_of(importing, *reversed(people)) == ["already there"] * 3


@pytest.mark.parametrize(
    ("second", "code"),
    [
        (one("ALICE@example.com"), "email-taken"),
        (one(password_hash=OTHER_HASH), "email-taken"),
        (one(id=OTHER_ID), "email-taken"),
        (one(registered_at=NOW - timedelta(days=2)), "email-taken"),
        (one(id=ID, age=31), "email-taken"),
        (one("bob@example.com", id=ID), "id-taken"),
        (one(), "already there"),
        (one(id=ID), "already there"),
        (one(registered_at=NOW - timedelta(days=1)), "already there"),
    ],
)
@pytest.mark.parametrize("in_one_batch", [True, False])
async def test_a_duplicate_has_to_be_equal(
    importing: UserImport, second: ImportRow, code: str, in_one_batch: bool
) -> None:
    first = one(id=ID, registered_at=NOW - timedelta(days=1))
    batches = [[first, second]] if in_one_batch else [[first], [second]]
    outcomes = [outcome for batch in batches for outcome in await outcomes_of(importing, *batch)]
    assert outcomes == ["imported", code]


async def test_a_mailbox_of_one_user_and_an_id_of_another_are_both_reported(importing: UserImport) -> None:
    await importing.take([one(id=ID), one("bob@example.com", id=OTHER_ID)])
    assert await outcomes_of(importing, one(id=OTHER_ID)) == ["email-taken id-taken"]


async def test_all_violations_are_reported_and_other_rows_are_imported(importing: UserImport) -> None:
    assert await outcomes_of(
        importing,
        one("nobody", age=17, password_hash="hunter2", registered_at=NOW + timedelta(days=1)),
        one("bob@example.com"),
        ValidationFailed([Violation("age", "wrong-type", "Must be a whole number.")]),
    ) == ["invalid-email out-of-range out-of-range unknown-hash", "imported", "wrong-type"]
    assert await importing.take([]) == []


async def test_a_user_who_registers_between_reading_and_storing_keeps_the_mailbox(
    users: InMemoryUsers, monkeypatch: pytest.MonkeyPatch
) -> None:
    registering = [
        User.imported(email="alice@example.com", age=99, password_hash=HASH, at=NOW),
        User.imported(email="bob@example.com", age=30, password_hash=HASH, at=NOW),
    ]
    add_all = users.add_all

    async def add_all_later(imported: Sequence[User]) -> list[bool]:
        while registering:
            await users.add(registering.pop())
        return await add_all(imported)

    monkeypatch.setattr(users, "add_all", add_all_later)
    importing = import_into(users)
    assert await outcomes_of(importing, one(), one("bob@example.com"), one("carol@example.com")) == [
        "email-taken",
        "already there",
        "imported",
    ]


def test_the_repr_of_a_row_does_not_show_the_hash() -> None:
    assert HASH not in repr(one())


# --- password hashes -------------------------------------------------------------------------------------------------


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
