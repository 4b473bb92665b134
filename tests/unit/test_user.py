import sys
import unicodedata
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from usersvc.domain.email_address import _INVISIBLE, EmailAddress
from usersvc.domain.errors import ValidationFailed
from usersvc.domain.events import UserRegistered
from usersvc.domain.password import Password, PasswordHash
from usersvc.domain.user import Age, User

GOOD: dict[str, Any] = {"email": "alice@example.com", "password": "correct horse battery", "age": 30}
NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


def broken_rules(**changed: object) -> set[tuple[str, str]]:
    return {(violation.field, violation.code) for violation in User.violations(**{**GOOD, **changed})}


class TestRegistering:
    def test_creates_a_user_and_its_event_without_the_password(self) -> None:
        registration = User.register(**GOOD)
        user = registration.complete(PasswordHash("$secret-hash"), at=NOW)

        assert (user.email.typed, user.age.years, user.password_hash) == ("alice@example.com", 30, "$secret-hash")
        assert (user.registered_at, user.id.version) == (NOW, 7)
        assert user.events == (UserRegistered(user_id=user.id, email="alice@example.com", occurred_at=NOW),)
        shown = f"{registration!r} {registration.password!r} {registration.password} {user!r} {user.events!r}"
        assert GOOD["password"] not in shown
        assert "$secret-hash" not in shown

    def test_reports_every_broken_rule_at_once(self) -> None:
        with pytest.raises(ValidationFailed) as refused:
            User.register(email="nobody", password="nobody", age=17)

        assert [(violation.field, violation.code) for violation in refused.value.violations] == [
            ("email", "invalid-email"),
            ("password", "too-short"),
            ("password", "same-as-email"),
            ("age", "out-of-range"),
        ]

    def test_checks_only_the_given_values(self) -> None:
        assert [violation.field for violation in User.violations(age=1)] == ["age"]
        assert User.violations() == []

    @pytest.mark.parametrize("zone", [None, timezone(timedelta(hours=5))])
    def test_requires_a_time_in_utc(self, zone: timezone | None) -> None:
        with pytest.raises(ValueError, match="UTC"):
            User.register(**GOOD).complete(PasswordHash("$hash"), at=NOW.replace(tzinfo=zone))

    @given(st.text(), st.text(), st.integers())
    def test_succeeds_or_gives_reasons_without_the_password(self, email: str, password: str, age: int) -> None:
        try:
            registration = User.register(email=email, password=password, age=age)
        except ValidationFailed as refused:
            assert refused.violations
            if len(password) > 30:
                assert password not in f"{refused}{refused.violations}"
        else:
            assert registration.email.typed == email
            assert registration.password.clear == unicodedata.normalize("NFC", password)
            assert registration.age == Age(age)


class TestAge:
    @pytest.mark.parametrize("years", [18, 130])
    def test_accepts_the_bounds(self, years: int) -> None:
        assert Age(years).years == years

    @pytest.mark.parametrize("years", [17, 131, 0, -18, 10**30, 30.5, 30.0, True])
    def test_refuses_other_values(self, years: float) -> None:
        assert broken_rules(age=years) == {("age", "out-of-range")}


class TestEmailAddress:
    # The library has its own tests of the syntax; these are about the options it is called with.
    @pytest.mark.parametrize(
        "address",
        [
            "!#$%&'*+-/=?^_`{|}~@example.com",
            '"quoted local"@example.com',
            "alice@[8.8.8.8]",
            "alice@[IPv6:2606:4700:4700::1111]",
            "用户@例子.广告",
            "alice@example.test",
        ],
    )
    def test_accepts_the_syntax_of_the_rfcs(self, address: str) -> None:
        assert EmailAddress(address).typed == address

    @pytest.mark.parametrize(
        "address",
        [
            "",
            "alice@example.com\r\nBcc: bob@example.com",
            "Alice <alice@example.com>",
            "alice@localhost",
            "alice\ud800@example.com",
            f"{'a' * 65}@example.com",
            "alice@[192.0.2.256]",
            "alice@[IPv6:fe80::1%eth0]",
        ],
    )
    def test_refuses_other_syntax(self, address: str) -> None:
        assert broken_rules(email=address) == {("email", "invalid-email")}

    @pytest.mark.parametrize(
        "literal",
        [
            # Special-purpose addresses by the IANA registries (RFC 6890), and multicast.
            *("127.0.0.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1"),
            *("192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
            *("IPv6:::1", "IPv6:::", "IPv6:fe80::1", "IPv6:fec0::1", "IPv6:fc00::1", "IPv6:ff02::1"),
            "IPv6:2001:db8::1",
            # IPv6 addresses that embed an IPv4 address: mapped, compatible, NAT64, 6to4, Teredo.
            *("IPv6:::ffff:127.0.0.1", "IPv6:::ffff:8.8.8.8", "IPv6:::127.0.0.1", "IPv6:64:ff9b::7f00:1"),
            *("IPv6:2002:7f00:1::1", "IPv6:2001:0:7f00:1::1"),
        ],
    )
    def test_refuses_address_literals_that_are_not_global(self, literal: str) -> None:
        assert broken_rules(email=f"alice@[{literal}]") == {("email", "invalid-email")}

    @pytest.mark.parametrize("local", ["ali{}ce", "{}alice", '"ali {}ce"'])
    def test_refuses_invisible_characters_before_the_at_sign(self, local: str) -> None:
        # The first of each range of Default_Ignorable_Code_Point, which has 4,174 (DerivedCoreProperties.txt).
        first = "\u00ad\u034f\u061c\u115f\u17b4\u180b\u200b\u202a\u2060\u3164\ufe00\ufeff\uffa0\ufff0"
        for character in f"{first}\U0001bca0\U0001d173\U000e0000":
            address = f"{local.format(character)}@example.com"
            assert broken_rules(email=address) == {("email", "invalid-email")}, ascii(character)
        assert len(_INVISIBLE.findall("".join(map(chr, range(sys.maxunicode + 1))))) == 4174

    def test_has_at_most_254_octets(self) -> None:
        longest = f"{'a' * 64}@{'b' * 63}.{'c' * 63}.{'d' * 58}.eu"
        assert len(longest) == 254
        assert broken_rules(email=longest) == set()
        assert broken_rules(email=f"{longest}u") == {("email", "too-long")}
        assert broken_rules(email=f"{'ü' * 128}@example.com") == {("email", "too-long")}

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("alice@example.com", "ALICE@EXAMPLE.COM"),
            ("alice@example.com", '"alice"@example.com'),
            ("jos\u00e9@example.com", "jose\u0301@example.com"),
            ("JOSE\u0301@example.com", "jos\u00e9@example.com"),
            ("alice@münchen.de", "alice@XN--MNCHEN-3YA.DE"),
            ("straße@example.com", "STRASSE@example.com"),
            ("alice@日本。jp", "alice@日本.jp"),
            # Unicode Standard, section 3.13, D145: folding needs the decomposed form here.
            ("\u1fb3\u0323@example.com", "\u03b1\u0323\u03b9@example.com"),
        ],
    )
    def test_is_equal_to_another_spelling_of_the_mailbox(self, one: str, other: str) -> None:
        assert EmailAddress(one) == EmailAddress(other)
        assert EmailAddress(one).mailbox == EmailAddress(other).mailbox

    @pytest.mark.parametrize("other", ["alice@example.org", "al.ice@example.com", "alice+tag@example.com"])
    def test_differs_from_another_mailbox(self, other: str) -> None:
        assert EmailAddress("alice@example.com") != EmailAddress(other)

    @given(st.emails())
    def test_in_ascii_is_one_mailbox_in_any_case(self, address: str) -> None:
        if not broken_rules(email=address):
            mailbox = EmailAddress(address).mailbox
            assert {EmailAddress(each).mailbox for each in (address.upper(), address.lower(), mailbox)} == {mailbox}

    @given(st.emails(), st.text(max_size=3), st.integers(0, 60))
    def test_any_text_is_accepted_or_refused(self, address: str, noise: str, at: int) -> None:
        User.violations(email=address[:at] + noise + address[at:])


class TestPassword:
    @pytest.mark.parametrize(
        "password",
        [
            "8 chars!",
            "🔑" * 256,
            "e\u0301" * 256,
            "كلمة السر الطويلة",
            "\x00\x01\x02\x03\x04\x05\x06\x07",
            "        ",
            "password password",
            "alice in wonderland",
        ],
    )
    def test_may_contain_any_character(self, password: str) -> None:
        assert broken_rules(password=password) == set()

    @pytest.mark.parametrize(
        ("password", "rule"),
        [
            ("7chars!", "too-short"),
            ("🔑" * 7, "too-short"),
            ("e\u0301" * 7, "too-short"),
            ("x" * 257, "too-long"),
            ("half a pair \ud83d", "invalid-character"),
            ("PassWord1", "common-password"),
            ("12345678", "common-password"),
            ("ALICE@EXAMPLE.COM", "same-as-email"),
        ],
    )
    def test_is_refused(self, password: str, rule: str) -> None:
        assert broken_rules(password=password) == {("password", rule)}

    def test_is_compared_in_composed_form(self) -> None:
        assert Password.choose("e\u0301" * 8) == Password.choose("é" * 8)

    @pytest.mark.parametrize(
        ("email", "password"),
        [
            ("Alice.Liddell@example.com", "ALICE.LIDDELL"),
            ('"alice.liddell"@example.com', "ALICE.liddell"),
            ("alice.liddell@example.com", '"alice.liddell"'),
            ('"alice liddell"@example.com', "alice liddell"),
            ('"alice \\l\\iddell"@example.com', "alice liddell"),
            ("alice@münchen.de", "alice@xn--mnchen-3ya.de"),
            ("alice@xn--mnchen-3ya.de", "ALICE@münchen.de"),
            ("alice@example.com", '"alice"@example.com'),
        ],
    )
    def test_is_not_the_address_or_its_local_part_in_any_spelling(self, email: str, password: str) -> None:
        assert broken_rules(email=email, password=password) == {("password", "same-as-email")}

    def test_of_any_length_is_checked_quickly(self) -> None:
        # Normalizing these marks takes quadratic time: this test would take hours.
        marks = "a" + "\u0315" * 500_000 + "\u0327" * 500_000
        assert broken_rules(password=marks) == {("password", "too-long")}
        assert broken_rules(email=marks, password=marks) == {("email", "too-long"), ("password", "too-long")}

    def test_minimum_length_can_be_raised(self) -> None:
        [violation] = User.violations(password="x" * 14, password_min_length=15)
        assert violation.code == "too-short"
        assert User.violations(password="x" * 15, password_min_length=15) == []

    @given(st.text(min_size=8, max_size=256))
    @example("ÅÅÅÅÅÅÅÅ")
    def test_is_refused_only_for_documented_reasons(self, password: str) -> None:
        length = len(unicodedata.normalize("NFC", password))
        codes = {code for _, code in broken_rules(password=password)}
        assert ("too-short" in codes) == (length < Password.MIN_LENGTH)
        assert ("too-long" in codes) == (length > Password.MAX_LENGTH)
        assert codes <= {"too-short", "too-long", "common-password", "same-as-email"}


FOREIGN: dict[str, Any] = {
    "email": "Alice@example.com",
    "age": 30,
    "password_hash": "$2y$10$DwS6fdNzX/WPAc/7zf2M/.qmrVXRRwhq.5Exus5uxZCvdNbH7pfDS",
    "at": NOW,
}


class TestImporting:
    def test_creates_a_user_without_an_event(self) -> None:
        user = User.imported(**FOREIGN)

        assert (user.email.typed, user.age.years) == ("Alice@example.com", 30)
        assert user.password_hash == FOREIGN["password_hash"]
        assert (user.registered_at, user.events, user.id.version) == (NOW, (), 7)
        assert "$2y$" not in repr(user)

    def test_reports_every_broken_rule_at_once(self) -> None:
        with pytest.raises(ValidationFailed) as refused:
            User.imported(**FOREIGN | {"email": "nobody", "age": 17}, registered_at=NOW + timedelta(microseconds=1))

        assert [(violation.field, violation.code) for violation in refused.value.violations] == [
            ("email", "invalid-email"),
            ("age", "out-of-range"),
            ("registered_at", "out-of-range"),
        ]

    @pytest.mark.parametrize(
        ("time", "is_accepted"),
        [
            (datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC), False),
            (datetime(1970, 1, 1, tzinfo=UTC), True),
            (NOW, True),
            (NOW + timedelta(microseconds=1), False),
        ],
    )
    def test_accepts_times_from_1970_to_now(self, time: datetime, is_accepted: bool) -> None:
        if is_accepted:
            assert User.imported(**FOREIGN, registered_at=time).registered_at == time
        else:
            with pytest.raises(ValidationFailed, match=r"^registered_at: out-of-range$"):
                User.imported(**FOREIGN, registered_at=time)
