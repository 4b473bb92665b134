"""Moving users in and out, on stores in memory."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from usersvc.adapters.memory import InMemoryUsers
from usersvc.application import keyset
from usersvc.application.read_models import UserRecord
from usersvc.application.user_import import DryRun, ImportRow, ImportStatus, UserImport, everybody
from usersvc.domain.user import User

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
HASH = "$2y$10$DwS6fdNzX/WPAc/7zf2M/.qmrVXRRwhq.5Exus5uxZCvdNbH7pfDS"
OTHER_HASH = "$2y$11$DwS6fdNzX/WPAc/7zf2M/.qmrVXRRwhq.5Exus5uxZCvdNbH7pfDS"
ID, OTHER_ID = uuid4(), uuid4()


@pytest.fixture
def users() -> InMemoryUsers:
    return InMemoryUsers()


@pytest.fixture(params=["import", "rehearsal"])
def importing(request: pytest.FixtureRequest, users: InMemoryUsers) -> UserImport:
    """Both come to the same."""
    if request.param == "import":
        return UserImport(add_all=users.add_all, find_matching=users.archive.find_matching, clock=lambda: NOW)
    rehearsal = DryRun(users.archive)
    return UserImport(add_all=rehearsal.add_all, find_matching=rehearsal.find_matching, clock=lambda: NOW)


def one(
    email: str = "alice@example.com",
    *,
    age: int = 30,
    password_hash: str = HASH,
    id: UUID | None = None,  # noqa: A002  # as the field is called
    registered_at: datetime | None = None,
) -> ImportRow:
    return ImportRow(email, age, password_hash, id, registered_at)


async def fates(importing: UserImport, *rows: ImportRow) -> list[str]:
    """What became of each: imported, there, or the codes of what it was refused for."""
    outcomes = await importing.take(rows)
    assert len(outcomes) == len(rows)
    return [
        {ImportStatus.IMPORTED: "imported", ImportStatus.ALREADY_THERE: "there"}.get(outcome.status)
        or " ".join(violation.code for violation in outcome.violations)
        for outcome in outcomes
    ]


async def test_newcomers_are_imported_and_known_the_second_time(importing: UserImport) -> None:
    people = [one(), one("bob@example.com", id=ID), one("carol@example.com", registered_at=NOW - timedelta(days=1))]
    assert await fates(importing, *people) == ["imported"] * 3
    assert await fates(importing, *reversed(people)) == ["there"] * 3


async def test_who_is_imported_is_stored_as_told_and_nobody_is_told(users: InMemoryUsers) -> None:
    importing = UserImport(add_all=users.add_all, find_matching=users.archive.find_matching, clock=lambda: NOW)
    then = NOW - timedelta(days=1000)
    await importing.take([one("Alice@example.com", id=ID, registered_at=then), one("bob@example.com")])

    alice, bob = await users.archive.users(after=None, limit=10)
    assert (alice.id, alice.email, alice.age, alice.password_hash, alice.registered_at) == (
        ID,
        "Alice@example.com",
        30,
        HASH,
        then,
    )
    assert (bob.id.version, bob.registered_at) == (7, NOW)
    assert await users.outbox.entries() == []


async def test_a_rehearsal_stores_nothing(users: InMemoryUsers) -> None:
    rehearsal = DryRun(users.archive)
    importing = UserImport(add_all=rehearsal.add_all, find_matching=rehearsal.find_matching)
    assert await fates(importing, one(), one("bob@example.com")) == ["imported"] * 2
    assert await users.archive.count() == 0


@pytest.mark.parametrize(
    ("second", "code"),
    [
        (one("ALICE@example.com"), "email-taken"),
        (one(age=31), "email-taken"),
        (one(password_hash=OTHER_HASH), "email-taken"),
        (one(id=OTHER_ID), "email-taken"),
        (one(registered_at=NOW - timedelta(days=2)), "email-taken"),
        (one(id=ID, age=31), "email-taken"),
        (one("bob@example.com", id=ID), "id-taken"),
        (one(), "there"),
        (one(id=ID), "there"),
        (one(registered_at=NOW - timedelta(days=1)), "there"),
    ],
)
@pytest.mark.parametrize("in_one_batch", [True, False])
async def test_who_comes_second_has_to_be_the_same(
    importing: UserImport, second: ImportRow, code: str, in_one_batch: bool
) -> None:
    first = one(id=ID, registered_at=NOW - timedelta(days=1))
    if in_one_batch:
        assert await fates(importing, first, second) == ["imported", code]
    else:
        assert await fates(importing, first) == ["imported"]
        assert await fates(importing, second) == [code]


async def test_a_mailbox_of_one_and_an_id_of_another_are_both_told(importing: UserImport) -> None:
    await importing.take([one(id=ID), one("bob@example.com", id=OTHER_ID)])
    assert await fates(importing, one(id=OTHER_ID)) == ["email-taken id-taken"]


async def test_who_was_registered_here_is_not_taken_for_another(importing: UserImport, users: InMemoryUsers) -> None:
    here = User.imported(email="alice@example.com", age=30, password_hash=OTHER_HASH, at=NOW)
    await users.add(here)
    assert await fates(importing, one(), one("bob@example.com", id=here.id)) == ["email-taken", "id-taken"]


async def test_each_is_told_every_broken_rule_and_holds_up_nobody(importing: UserImport) -> None:
    assert await fates(
        importing,
        one("nobody", age=17, password_hash="hunter2", registered_at=NOW + timedelta(days=1)),
        one("bob@example.com"),
        one(age=131),
    ) == ["invalid-email out-of-range unknown-hash out-of-range", "imported", "out-of-range"]


async def test_many_with_one_mailbox_in_one_batch_are_settled(importing: UserImport) -> None:
    batch = [one(age=30 + n % 2) for n in range(20)] + [one("bob@example.com", id=ID), one("carol@example.com", id=ID)]
    assert await fates(importing, *batch) == [
        "imported",
        *["email-taken", "there"] * 9,
        "email-taken",
        "imported",
        "id-taken",
    ]


async def test_who_registers_between_the_look_and_the_storing_keeps_the_mailbox(users: InMemoryUsers) -> None:
    quick = [
        User.imported(email="alice@example.com", age=99, password_hash=HASH, at=NOW),
        User.imported(email="bob@example.com", age=30, password_hash=HASH, at=NOW),
    ]

    async def find_matching(*, mailboxes: Sequence[str], ids: Sequence[UUID]) -> list[UserRecord]:
        found = await users.archive.find_matching(mailboxes=mailboxes, ids=ids)
        while quick:
            await users.add(quick.pop())
        return found

    importing = UserImport(add_all=users.add_all, find_matching=find_matching, clock=lambda: NOW)
    assert await fates(importing, one(), one("bob@example.com"), one("carol@example.com")) == [
        "email-taken",
        "there",
        "imported",
    ]


async def test_nobody_never_reaches_the_store() -> None:
    async def unreachable(*_: object, **__: object) -> list[bool]:
        raise AssertionError

    importing = UserImport(add_all=unreachable, find_matching=InMemoryUsers().archive.find_matching)
    assert await importing.take([]) == []
    assert await fates(importing, one(age=17)) == ["out-of-range"]


async def test_everybody_comes_out_once(users: InMemoryUsers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyset, "BATCH", 3)
    assert [batch async for batch in everybody(users.archive)] == []
    people = [User.imported(email=f"u{n}@example.com", age=30, password_hash=HASH, at=NOW) for n in range(7)]
    await users.add_all(people)
    batches = [batch async for batch in everybody(users.archive)]

    assert [len(batch) for batch in batches] == [3, 3, 1]
    assert [record.id for batch in batches for record in batch] == [user.id for user in people]


def test_a_newcomer_never_shows_the_hash() -> None:
    assert HASH not in repr(one())
