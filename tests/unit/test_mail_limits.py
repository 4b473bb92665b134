from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usersvc.domain.events import UserRegistered
from usersvc.domain.mail_limits import DOMAIN, MAILBOX, Reserved, limits, reserve

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
DAY = timedelta(days=1)


def event(email: str, at: datetime = NOW) -> UserRegistered:
    return UserRegistered(uuid4(), email, at)


@pytest.mark.parametrize(
    "email",
    ["alice+tag@example.com", "ALICE+a+b@Example.COM", "al.ice+@example.com", '"alice+1"@example.com'],
)
def test_addresses_of_one_mailbox_share_its_limit(email: str) -> None:
    assert limits(event(email)) == limits(event("alice@example.com"))


@pytest.mark.parametrize("email", ["bob@example.com", "alice@example.org", "+alice@example.com", "alice@x.example.com"])
def test_other_mailboxes_have_limits_of_their_own(email: str) -> None:
    mailbox, domain = limits(event(email))
    others = limits(event("alice@example.com"))
    assert mailbox not in others
    assert (domain in others) == email.endswith("@example.com")


def test_nothing_of_the_address_is_in_a_digest() -> None:
    for digest in limits(event("alice@example.com")):
        assert len(digest) == 64
        assert set(digest) <= set("0123456789abcdef")


@given(st.lists(st.timedeltas(timedelta(0), timedelta(days=3)), min_size=1, max_size=60))
def test_at_most_ten_mails_are_due_in_24_hours_and_the_first_are_not_delayed(after: list[timedelta]) -> None:
    reserved: dict[str, Reserved] = {}
    dues: list[datetime] = []
    for number, since in enumerate(sorted(after)):
        due_at, changed = reserve(event(f"victim+{number}@example.com", NOW + since), reserved)
        reserved |= changed
        assert due_at >= NOW + since
        dues.append(due_at)
    assert dues == sorted(dues)
    for first in dues:
        assert sum(first <= due <= first + DAY for due in dues) <= 10
    assert dues[: MAILBOX.burst] == [NOW + since for since in sorted(after)][: MAILBOX.burst]


@given(st.lists(st.datetimes(datetime(1970, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)), max_size=20))  # noqa: DTZ001  # hypothesis adds the zone
def test_wrong_clocks_delay_a_mail_by_at_most_one_gap_per_mail(clocks: list[datetime]) -> None:
    reserved: dict[str, Reserved] = {}
    for at in clocks:
        reserved |= reserve(event("victim@example.com", at), reserved)[1]
    due_at, _ = reserve(event("victim@example.com"), reserved)
    assert NOW <= due_at <= NOW + len(clocks) * MAILBOX.gap


def test_a_domain_has_its_own_rate() -> None:
    reserved: dict[str, Reserved] = {}
    for number in range(DOMAIN.burst):
        due_at, changed = reserve(event(f"user{number}@example.com"), reserved)
        reserved |= changed
        assert due_at == NOW
    assert reserve(event("late@example.com"), reserved)[0] == NOW + DOMAIN.gap
    assert reserve(event("late@example.org"), reserved)[0] == NOW
