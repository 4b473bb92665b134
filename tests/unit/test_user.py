import sys
import unicodedata
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

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


# DerivedCoreProperties.txt, Default_Ignorable_Code_Point.
DEFAULT_IGNORABLE = [
    (0x00AD, 0x00AD),
    (0x034F, 0x034F),
    (0x061C, 0x061C),
    (0x115F, 0x1160),
    (0x17B4, 0x17B5),
    (0x180B, 0x180F),
    (0x200B, 0x200F),
    (0x202A, 0x202E),
    (0x2060, 0x206F),
    (0x3164, 0x3164),
    (0xFE00, 0xFE0F),
    (0xFEFF, 0xFEFF),
    (0xFFA0, 0xFFA0),
    (0xFFF0, 0xFFF8),
    (0x1BCA0, 0x1BCA3),
    (0x1D173, 0x1D17A),
    (0xE0000, 0xE0FFF),
]


def mailbox(address: str) -> str:
    return EmailAddress(address).mailbox


class TestRegistering:
    def test_gives_a_user_with_everything_that_was_handed_in_but_the_password(self) -> None:
        registration = User.register(**GOOD)
        user = registration.complete(PasswordHash("$hash"), at=NOW)

        assert (user.email.typed, user.age.years, user.password_hash) == ("alice@example.com", 30, "$hash")
        assert user.registered_at == NOW
        assert user.id.version == 7

    def test_tells_that_it_has_happened(self) -> None:
        user = User.register(**GOOD).complete(PasswordHash("$hash"), at=NOW)

        assert user.events == (UserRegistered(user_id=user.id, email="alice@example.com", occurred_at=NOW),)

    def test_reports_every_broken_rule_at_once(self) -> None:
        with pytest.raises(ValidationFailed) as refused:
            User.register(email="nobody", password="nobody", age=17)

        assert [(violation.field, violation.code) for violation in refused.value.violations] == [
            ("email", "invalid-email"),
            ("password", "too-short"),
            ("password", "same-as-email"),
            ("age", "out-of-range"),
        ]

    def test_judges_only_what_is_given(self) -> None:
        assert [violation.field for violation in User.violations(age=1)] == ["age"]
        assert User.violations() == ()

    def test_never_shows_a_password_or_its_hash(self) -> None:
        registration = User.register(**GOOD)
        user = registration.complete(PasswordHash("$secret-hash"), at=NOW)

        shown = f"{registration!r} {registration.password!r} {registration.password} {user!r} {user.events!r}"

        assert GOOD["password"] not in shown
        assert "$secret-hash" not in shown

    @given(st.text(), st.text(), st.integers())
    def test_either_gives_a_user_or_says_why_without_repeating_the_password(
        self, email: str, password: str, age: int
    ) -> None:
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


class TestUser:
    @pytest.mark.parametrize("zone", [None, timezone(timedelta(hours=5))])
    def test_has_a_time_in_utc(self, zone: timezone | None) -> None:
        with pytest.raises(ValueError, match="UTC"):
            User.register(**GOOD).complete(PasswordHash("$hash"), at=NOW.replace(tzinfo=zone))


class TestAge:
    @pytest.mark.parametrize("years", [18, 130])
    def test_admits_the_bounds(self, years: int) -> None:
        assert Age(years).years == years

    @pytest.mark.parametrize("years", [17, 131, 0, -18, 10**30, 30.5, 30.0, True])
    def test_refuses_what_is_outside(self, years: float) -> None:
        assert broken_rules(age=years) == {("age", "out-of-range")}


class TestEmailAddress:
    @pytest.mark.parametrize(
        "address",
        [
            "a@b.co",
            "alice+tag@example.com",
            "o'brien@example.com",
            "!#$%&'*+-/=?^_`{|}~@example.com",
            '"quoted local"@example.com',
            "alice@[8.8.8.8]",
            "alice@[IPv6:2606:4700:4700::1111]",
            "用户@例子.广告",
            "θσερ@εχαμπλε.ψομ",
            "alice@xn--mnchen-3ya.de",
            "alice@example.test",
            f"{'a' * 64}@example.com",
        ],
    )
    def test_admits_what_the_rfcs_admit(self, address: str) -> None:
        assert EmailAddress(address).typed == address

    @pytest.mark.parametrize(
        "address",
        [
            "",
            "@",
            "alice",
            "alice@",
            "@example.com",
            "alice@@example.com",
            "alice@example@example.com",
            "alice example@example.com",
            "alice@exam ple.com",
            " alice@example.com",
            "alice@example.com\n",
            ".alice@example.com",
            "alice.@example.com",
            "al..ice@example.com",
            "alice@example..com",
            "alice@-example.com",
            "alice@example.com.",
            "alice@localhost",
            "alice@exa_mple.com",
            "Alice <alice@example.com>",
            "alice@example.com, bob@example.com",
            "alice@[192.0.2.256]",
            "alice\x00@example.com",
            "alice\ud800@example.com",
            "alice@example.com\r\nBcc: bob@example.com",
            f"{'a' * 65}@example.com",
            f"alice@{'b' * 64}.com",
            "alice@[IPv6:fe80::1%eth0]",
        ],
    )
    def test_refuses_what_they_do_not(self, address: str) -> None:
        assert broken_rules(email=address) == {("email", "invalid-email")}

    @pytest.mark.parametrize(
        "literal",
        [
            # Special-purpose addresses by the IANA registries (RFC 6890), and multicast.
            *("127.0.0.1", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.0.1", "169.254.169.254", "100.64.0.1"),
            *("192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255"),
            *(
                "IPv6:::1",
                "IPv6:::",
                "IPv6:fe80::1",
                "IPv6:fec0::1",
                "IPv6:fc00::1",
                "IPv6:ff02::1",
                "IPv6:2001:db8::1",
            ),
            # IPv6 addresses that stand for an IPv4 address: mapped, compatible, NAT64, 6to4, Teredo.
            *("IPv6:::ffff:127.0.0.1", "IPv6:::ffff:8.8.8.8", "IPv6:::127.0.0.1", "IPv6:64:ff9b::7f00:1"),
            *("IPv6:2002:7f00:1::1", "IPv6:2001:0:7f00:1::1"),
        ],
    )
    def test_refuses_address_literals_that_are_not_global(self, literal: str) -> None:
        assert broken_rules(email=f"alice@[{literal}]") == {("email", "invalid-email")}

    @pytest.mark.parametrize(("first", "last"), DEFAULT_IGNORABLE)
    def test_refuses_invisible_characters_before_the_at_sign(self, first: int, last: int) -> None:
        for code_point in {first, last}:
            for local in (f"ali{chr(code_point)}ce", f"{chr(code_point)}alice", f'"ali {chr(code_point)}ce"'):
                assert broken_rules(email=f"{local}@example.com") == {("email", "invalid-email")}, hex(code_point)

    @given(st.characters(exclude_categories=["Cs"]), st.sampled_from(["al{}ice", "alice{}", '"al {}ice"']))
    def test_no_default_ignorable_code_point_is_in_a_local_part(self, character: str, local: str) -> None:
        try:
            address = EmailAddress(f"{local.format(character)}@example.com")
        except ValidationFailed:
            return
        assert not any(first <= ord(each) <= last for each in address.mailbox for first, last in DEFAULT_IGNORABLE)

    def test_the_table_of_invisible_characters_is_whole(self) -> None:
        # The section in DerivedCoreProperties.txt ends with "Total code points: 4174".
        table = {code_point for first, last in DEFAULT_IGNORABLE for code_point in range(first, last + 1)}
        assert len(table) == 4174
        assert {code_point for code_point in range(sys.maxunicode + 1) if _INVISIBLE.match(chr(code_point))} == table

    def test_has_at_most_254_octets(self) -> None:
        def of_octets(count: int) -> str:
            labels = f"{'b' * 63}.{'c' * 63}.{'d' * (count - 64 - 1 - 128 - 3)}.eu"
            return f"{'a' * 64}@{labels}"

        assert len(of_octets(254)) == 254
        assert broken_rules(email=of_octets(254)) == set()
        assert broken_rules(email=of_octets(255)) == {("email", "too-long")}

    def test_counts_octets_and_not_characters(self) -> None:
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
            ("\u1f80@example.com", "\u1f00\u03b9@example.com"),
        ],
    )
    def test_is_equal_to_another_spelling_of_the_mailbox(self, one: str, other: str) -> None:
        assert EmailAddress(one) == EmailAddress(other)
        assert mailbox(one) == mailbox(other)

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("alice@example.com", "alice@example.org"),
            ("alice@example.com", "al.ice@example.com"),
            ("alice@example.com", "alice+tag@example.com"),
        ],
    )
    def test_differs_from_another_mailbox(self, one: str, other: str) -> None:
        assert EmailAddress(one) != EmailAddress(other)

    @given(st.emails())
    def test_of_any_case_is_one_mailbox_when_it_is_ascii(self, address: str) -> None:
        if not broken_rules(email=address):
            assert mailbox(address.upper()) == mailbox(address.lower()) == mailbox(mailbox(address))

    @given(st.emails(), st.text(max_size=3), st.integers(0, 60))
    def test_never_fails_but_by_refusing(self, address: str, noise: str, at: int) -> None:
        User.violations(email=address[:at] + noise + address[at:])


class TestPassword:
    @pytest.mark.parametrize(
        "password",
        [
            "8 chars!",
            "x" * 73,
            "🔑" * 8,
            "🔑" * 256,
            "пароль-длинный",
            "密码密码密码密码",
            "كلمة السر الطويلة",
            "\x00\x01\x02\x03\x04\x05\x06\x07",
            "        ",
            "password password",
        ],
    )
    def test_may_hold_any_character(self, password: str) -> None:
        assert broken_rules(password=password) == set()

    @pytest.mark.parametrize(
        ("password", "rule"),
        [
            ("", "too-short"),
            ("7chars!", "too-short"),
            ("🔑" * 7, "too-short"),
            ("e\u0301" * 7, "too-short"),
            ("x" * 257, "too-long"),
            ("half a pair \ud83d", "invalid-character"),
            ("password", "common-password"),
            ("PassWord1", "common-password"),
            ("12345678", "common-password"),
            ("00000000", "common-password"),
            ("alice@example.com", "same-as-email"),
            ("ALICE@EXAMPLE.COM", "same-as-email"),
        ],
    )
    def test_is_refused(self, password: str, rule: str) -> None:
        assert broken_rules(password=password) == {("password", rule)}

    def test_counts_composed_and_decomposed_characters_alike(self) -> None:
        assert broken_rules(password="e\u0301" * 256) == set()
        assert Password.choose("e\u0301" * 8) == Password.choose("é" * 8)

    @pytest.mark.parametrize("password", ["alice.liddell", "ALICE.LIDDELL"])
    @pytest.mark.parametrize(
        "email", ["alice.liddell@example.com", "Alice.Liddell@example.com", '"alice.liddell"@example.com']
    )
    def test_is_not_the_local_part(self, email: str, password: str) -> None:
        assert broken_rules(email=email, password=password) == {("password", "same-as-email")}

    @pytest.mark.parametrize(
        ("email", "password"),
        [
            ("alice@münchen.de", "alice@xn--mnchen-3ya.de"),
            ("alice@xn--mnchen-3ya.de", "ALICE@münchen.de"),
            ("alice@example.com", '"alice"@example.com'),
            ('"alice liddell"@example.com', "alice liddell"),
            ('"alice \\l\\iddell"@example.com', "alice liddell"),
            ("alice.liddell@example.com", '"alice.liddell"'),
        ],
    )
    def test_is_not_the_address_in_another_spelling(self, email: str, password: str) -> None:
        assert broken_rules(email=email, password=password) == {("password", "same-as-email")}

    def test_of_any_size_is_judged_at_once(self) -> None:
        # Bringing these marks into order takes a time that grows with the square: this test would take hours.
        marks = "a" + "\u0315" * 500_000 + "\u0327" * 500_000
        assert broken_rules(password=marks) == {("password", "too-long")}
        assert broken_rules(email=marks, password=marks) == {("email", "too-long"), ("password", "too-long")}

    def test_may_hold_the_local_part(self) -> None:
        assert broken_rules(password="alice in wonderland") == set()

    def test_may_have_to_be_longer(self) -> None:
        assert [violation.code for violation in User.violations(password="x" * 14, password_min_length=15)] == [
            "too-short"
        ]
        assert User.violations(password="x" * 15, password_min_length=15) == ()

    @given(st.text(min_size=8, max_size=256))
    @example("ÅÅÅÅÅÅÅÅ")
    def test_of_good_length_is_refused_only_for_a_reason(self, password: str) -> None:
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
    def test_makes_a_user_of_whom_nobody_is_told(self) -> None:
        user = User.imported(**FOREIGN)

        assert (user.email.typed, user.age.years, user.password_hash) == (
            "Alice@example.com",
            30,
            FOREIGN["password_hash"],
        )
        assert (user.registered_at, user.events, user.id.version) == (NOW, (), 7)

    def test_keeps_the_id_and_the_time_that_the_user_had(self) -> None:
        old, then = UUID("0b9f6f1c-58ab-4f5c-9d5f-0f6b9a3a3a3a"), datetime(2001, 2, 3, 4, 5, 6, 7, tzinfo=UTC)
        user = User.imported(**FOREIGN, user_id=old, registered_at=then)

        assert (user.id, user.registered_at) == (old, then)

    def test_reports_every_broken_rule_at_once(self) -> None:
        with pytest.raises(ValidationFailed) as refused:
            User.imported(**FOREIGN | {"email": "nobody", "age": 17}, registered_at=NOW + timedelta(microseconds=1))

        assert [(violation.field, violation.code) for violation in refused.value.violations] == [
            ("email", "invalid-email"),
            ("age", "out-of-range"),
            ("registered_at", "out-of-range"),
        ]

    @pytest.mark.parametrize("age", [17, 131, -1, True])
    def test_holds_to_the_ages_of_everybody(self, age: int) -> None:
        with pytest.raises(ValidationFailed):
            User.imported(**FOREIGN | {"age": age})

    @pytest.mark.parametrize(
        "time",
        [
            datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC),
            NOW + timedelta(microseconds=1),
            datetime.max.replace(tzinfo=UTC),
        ],
    )
    def test_refuses_a_time_at_which_nobody_can_have_registered(self, time: datetime) -> None:
        with pytest.raises(ValidationFailed) as refused:
            User.imported(**FOREIGN, registered_at=time)
        assert [violation.field for violation in refused.value.violations] == ["registered_at"]

    @pytest.mark.parametrize("time", [datetime(1970, 1, 1, tzinfo=UTC), NOW])
    def test_takes_the_first_and_the_last_time_that_can_be(self, time: datetime) -> None:
        assert User.imported(**FOREIGN, registered_at=time).registered_at == time

    def test_never_shows_the_hash(self) -> None:
        assert "$2y$" not in repr(User.imported(**FOREIGN))
