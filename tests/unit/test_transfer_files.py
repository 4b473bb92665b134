"""Files of users: how they are read, how they are written, and that the one takes back what the other gives."""

import csv
import io
import json
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from usersvc.application.read_models import UserRecord
from usersvc.application.user_import import ImportRow
from usersvc.cli.csv_injection import escape, unescape
from usersvc.cli.exit_codes import Failure
from usersvc.cli.formats import Format
from usersvc.cli.reader import MAX_RECORD_BYTES, Record, Source, read_records
from usersvc.cli.row_schema import load_row
from usersvc.cli.writer import Writer
from usersvc.domain.email_address import EmailAddress
from usersvc.domain.errors import ValidationFailed
from usersvc.domain.password import PasswordHash

HASH = "$2y$10$DwS6fdNzX/WPAc/7zf2M/.qmrVXRRwhq.5Exus5uxZCvdNbH7pfDS"
HEAD = b"email,age,password_hash\n"


def lines(content: bytes, form: Format = Format.CSV, *, ignore_unknown: bool = False) -> list[Record]:
    return [*read_records(Source(io.BytesIO(content)), form, ignore_unknown=ignore_unknown)]


def codes(line: Record) -> list[str]:
    return [violation.code for violation in line.violations]


# --- CSV ------------------------------------------------------------------------------------------------------------


def test_a_csv_line_is_read_by_the_names_in_the_first() -> None:
    [line] = lines(b'age,password_hash,email\r\n30,"$2y$","al""ice@example.com"\r\n')
    assert line.values == {"email": 'al"ice@example.com', "age": 30, "password_hash": "$2y$"}
    assert (line.number, line.text) == (2, '30,"$2y$","al""ice@example.com"')


@pytest.mark.parametrize(
    "content",
    [
        b"\xef\xbb\xbfemail,age,password_hash\na@b.c,30,x\n",
        b"email,age,password_hash\na@b.c,30,x",
        b"email,age,password_hash\n\n\r\na@b.c,30,x\n\n",
        b'"email","age","password_hash"\n"a@b.c","30","x"\n',
        b"email,age,password_hash,id,registered_at\na@b.c,30,x,,\n",
    ],
)
def test_csv_of_other_programs_is_read(content: bytes) -> None:
    [line] = lines(content)
    assert line.values == {"email": "a@b.c", "age": 30, "password_hash": "x"}


@pytest.mark.parametrize(
    ("head", "told"),
    [
        (b"", "missing: email, age, password_hash"),
        (b"email,age\n", "missing: password_hash"),
        (b"email;age;password_hash\n", "missing: email, age, password_hash"),
        (b"Email,age,password_hash\n", "missing: email"),
        (b'"email,age,password_hash\n', "lines 1 to 2 are malformed CSV (unexpected end of data)"),
        ("email,age,password_hash\n".encode("utf-16"), "Must be UTF-8"),
        (b"email,age,password_hash," + b"x" * MAX_RECORD_BYTES + b"\n", f"(more than {MAX_RECORD_BYTES} bytes)"),
        (b"email,age,password_hash,age\n", "a column twice"),
        (b"email,age,password_hash,name,\x1b[2J\n", r"'name', '\x1b[2J'; see --ignore-unknown"),
    ],
)
def test_a_first_line_without_the_columns_is_refused(head: bytes, told: str) -> None:
    with pytest.raises(Failure) as refused:
        lines(head + b"a@b.c,30,x,y,z\n")
    assert told in str(refused.value)


def test_unknown_columns_are_ignored_on_request() -> None:
    [line] = lines(b"name,email,age,password_hash\nAl,a@b.c,30,x\n", ignore_unknown=True)
    assert line.values == {"email": "a@b.c", "age": 30, "password_hash": "x"}


def test_an_invalid_csv_record_does_not_stop_the_others() -> None:
    found = lines(
        HEAD
        + b"a@b.c,30\n"
        + b"\xff@b.c,30,x\n"
        + b"a@b.c,30,x,y\n"
        + b"b@b.c,31,y\n"
        + b'"a\n",30,x,"y\n"\n'
        + b'a"@b.c,30,x\n'
    )
    assert [(line.number, codes(line)) for line in found] == [
        (2, ["wrong-number-of-cells"]),
        (3, ["invalid-utf-8"]),
        (4, ["wrong-number-of-cells"]),
        (5, []),
        (6, ["wrong-number-of-cells"]),
        (9, []),
    ]
    assert [line.text for line in found[1:]] == [
        "\\xff@b.c,30,x",
        "a@b.c,30,x,y",
        "b@b.c,31,y",
        '"a\n",30,x,"y\n"',
        'a"@b.c,30,x',
    ]
    assert found[3].values["email"] == "b@b.c"
    assert [(line.last, line.values.get("email")) for line in found[4:]] == [(8, None), (9, 'a"@b.c')]


def test_a_cell_with_line_breaks_keeps_the_count_of_lines() -> None:
    first, second = lines(HEAD + b'"a\n\nb",30,x\nc@b.c,30,x\n')
    assert (first.number, first.values["email"]) == (2, "a\n\nb")
    assert second.number == 5


FORGED = "admin@b.c,99,x"


@pytest.mark.parametrize(
    ("record", "last", "reason"),
    [
        ('b@b.c,30,"x\n', 5, "unexpected end of data"),
        ('b@b.c,"30"1,x\n', 3, "',' expected after '\"'"),
        (f'b@b.c,"30"1,"x\n{FORGED}\n"', 3, "',' expected after '\"'"),
        ('b@b.c,30,"x\n' + "a@b.c,30,x\n" * MAX_RECORD_BYTES, 5960, f"more than {MAX_RECORD_BYTES} bytes"),
        (f'"{"z" * MAX_RECORD_BYTES}\n{FORGED}\n",30,x\n', 3, f"more than {MAX_RECORD_BYTES} bytes"),
        (f'"\n{FORGED}\n{"z" * MAX_RECORD_BYTES}",30,x\n', 5, f"more than {MAX_RECORD_BYTES} bytes"),
        ("z" * 10 * MAX_RECORD_BYTES + ",30,x\n", 3, f"more than {MAX_RECORD_BYTES} bytes"),
    ],
)
def test_malformed_csv_ends_the_reading_so_that_no_part_of_a_cell_becomes_a_user(
    record: str, last: int, reason: str
) -> None:
    source = Source(io.BytesIO(HEAD + f"a@b.c,30,x\n{record}c@b.c,30,x\n{FORGED}".encode()))
    read = read_records(source, Format.CSV, ignore_unknown=False)
    assert next(read).values["email"] == "a@b.c"
    with pytest.raises(Failure) as failure:
        next(read)
    assert str(failure.value) == f"lines 3 to {last} are malformed CSV ({reason}); nothing was read from line 3 on"
    assert [*read] == []
    # Quotation marks that are not closed do not have it read, and keep, the whole file.
    assert source.bytes_read < 3 * MAX_RECORD_BYTES or record.startswith("zz")


@pytest.mark.parametrize("age", ["", " 30", "+30", "3e1", "30.0", "٣٠", "0x1e", "1_0", "9" * 5000])
def test_only_digits_are_an_age(age: str) -> None:
    [line] = lines(HEAD + f"a@b.c,{age},{HASH}\n".encode())
    with pytest.raises(ValidationFailed) as refused:
        load_row(line.values)
    assert ("age", "required" if not age else "wrong-type") in {
        (violation.field, violation.code) for violation in refused.value.violations
    }


# --- NDJSON ---------------------------------------------------------------------------------------------------------


def test_an_ndjson_line_is_read() -> None:
    content = '{"age":30,"password_hash":"x","email":"ä@b.c","id":null}\r\n\n  \n{"email":"b@b.c"}'.encode()
    first, second = lines(content, Format.NDJSON)
    assert (first.number, first.values) == (1, {"email": "ä@b.c", "age": 30, "password_hash": "x"})
    assert (second.number, second.values) == (4, {"email": "b@b.c"})


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"{", "malformed-json"),
        (b"[]", "malformed-json"),
        (b"null", "malformed-json"),
        (b"{} {}", "malformed-json"),
        (b'{"email":"a@b.c","email":"c@b.c"}', "malformed-json"),
        (b'{"age":NaN}', "malformed-json"),
        (b"[" * 5000, "malformed-json"),
        (b'{"email":"\xff"}', "invalid-utf-8"),
        (b'{"name":"Al"}', "unknown-member"),
        (b'{"email":"' + b"a" * MAX_RECORD_BYTES + b'"}', "too-long"),
    ],
)
def test_an_invalid_ndjson_line_does_not_stop_the_others(content: bytes, code: str) -> None:
    broken, after = lines(content + b'\n{"email":"b@b.c"}\n', Format.NDJSON)
    assert (codes(broken), broken.values) == ([code], {})
    assert (after.number, after.values) == (2, {"email": "b@b.c"})


def test_an_ndjson_line_that_is_too_long_is_read_but_not_kept() -> None:
    source = Source(io.BytesIO(b"a" * 10 * MAX_RECORD_BYTES + b"\n" + b'{"email":"b@b.c"}\n'))
    too_long, after = read_records(source, Format.NDJSON, ignore_unknown=False)
    assert (codes(too_long), too_long.number, len(too_long.text)) == (["too-long"], 1, MAX_RECORD_BYTES)
    assert (after.number, after.values["email"]) == (2, "b@b.c")
    assert source.bytes_read == 10 * MAX_RECORD_BYTES + 1 + 18


def test_unknown_members_are_ignored_on_request() -> None:
    [line] = lines(b'{"email":"a@b.c","name":"Al"}', Format.NDJSON, ignore_unknown=True)
    assert line.values == {"email": "a@b.c"}


# --- shape ----------------------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {"email": "alice@example.com", "age": 30, "password_hash": HASH}


def flaws(**changed: Any) -> list[tuple[str, str]]:
    with pytest.raises(ValidationFailed) as refused:
        load_row(GOOD | changed)
    return [(violation.field, violation.code) for violation in refused.value.violations]


def test_a_record_is_converted() -> None:
    user_id = uuid4()
    values = GOOD | {"id": str(user_id).upper(), "registered_at": "2001-02-03t04:05:06.5+02:00"}
    assert load_row(values) == ImportRow(
        "alice@example.com", 30, HASH, user_id, datetime(2001, 2, 3, 2, 5, 6, 500000, tzinfo=UTC)
    )


def test_all_violations_are_reported_at_once_with_those_of_rules() -> None:
    assert flaws(email="nobody", age="thirty", password_hash="hunter2", id="1", registered_at="now") == [
        ("age", "wrong-type"),
        ("id", "invalid-uuid"),
        ("registered_at", "invalid-time"),
        ("email", "invalid-email"),
        ("password_hash", "unknown-hash"),
    ]


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("email", 1, "wrong-type"),
        ("email", None, "required"),
        ("age", True, "wrong-type"),
        ("age", 30.0, "wrong-type"),
        ("age", [30], "wrong-type"),
        ("password_hash", {"hash": HASH}, "wrong-type"),
        ("id", 1, "invalid-uuid"),
        ("id", "{0b9f6f1c-58ab-4f5c-9d5f-0f6b9a3a3a3a}", "invalid-uuid"),
        ("id", "0b9f6f1c58ab4f5c9d5f0f6b9a3a3a3a", "invalid-uuid"),
        ("id", "٠b9f6f1c-58ab-4f5c-9d5f-0f6b9a3a3a3a", "invalid-uuid"),
        ("registered_at", 981173106, "invalid-time"),
        ("registered_at", "2001-02-03", "invalid-time"),
        ("registered_at", "2001-02-03T04:05:06", "invalid-time"),
        ("registered_at", "2001-W05-6T04:05:06Z", "invalid-time"),
        ("registered_at", "2001-02-30T04:05:06Z", "invalid-time"),
        ("registered_at", "2001-02-03T04:05:06+25:00", "invalid-time"),
        ("registered_at", "0001-01-01T00:00:00+01:00", "invalid-time"),
    ],
)
def test_a_wrong_value_has_a_code(name: str, value: object, code: str) -> None:
    assert flaws(**{name: value}) == [(name, code)]


# --- formulas -------------------------------------------------------------------------------------------------------


def is_formula(cell: str) -> bool:
    """Whether a spreadsheet may calculate a cell, or skip what it begins with and then calculate it."""
    skipped = {"Zs", "Zl", "Zp", "Cc"}
    visible = [each for each in cell if unicodedata.category(each) not in skipped and each not in '"＂\ufeff']
    return cell.startswith(("\t", "\r", "\n")) or (bool(visible) and visible[0] in "=+-@＝＋－＠﹦﹢﹣﹫")


@given(st.text() | st.text("'=;a") | st.text(" \t\x00\x7f\u3000\ufeff\"=+-@＝＋－＠﹦﹢﹣﹫;'a"))
@example("'=1+1")
@example("''")
@example("'")
@example('"x;=1+1;"@example.com')
@example('"x; =1+1;"@example.com')
@example("\xa0=1+1")
@example(" '=1+1")
def test_an_escaped_cell_is_no_formula_and_is_unescaped(cell: str) -> None:
    # Also where a semicolon ends a cell.
    for part in escape(cell).split(";"):
        assert not is_formula(part)
    assert unescape(escape(cell)) == cell


@pytest.mark.parametrize(
    ("cell", "written"),
    [
        ("=1+1", "'=1+1"),
        (" =1+1", "' =1+1"),
        ('"x; =1+1"@example.com', '"x;\' =1+1"@example.com'),
        ('x;"=1+1"', 'x;\'"=1+1"'),
        ("\t x", "'\t x"),
        ("\x01@SUM(1)", "'\x01@SUM(1)"),
        ("\u3000＝1", "'\u3000＝1"),
        ("﹢1", "'﹢1"),
        ("\ufeff-1", "'\ufeff-1"),
        ("'x", "''x"),
        ("alice@example.com", "alice@example.com"),
        ('"a = b"@example.com', '"a = b"@example.com'),
    ],
)
def test_a_formula_is_escaped_with_an_apostrophe(cell: str, written: str) -> None:
    assert escape(cell) == written
    assert unescape(written) == cell


@pytest.mark.parametrize("cell", ["'bob@example.com", "alice@example.com", "a=b@example.com", ""])
def test_unescape_leaves_other_cells_unchanged(cell: str) -> None:
    assert unescape(cell) == cell


# --- there and back -------------------------------------------------------------------------------------------------

ATEXT = "abcXYZ019!#$%&'*+-/=?^_`{|}~ÄÖüß漢＝＋"


def addresses() -> st.SearchStrategy[str]:
    def is_address(text: str) -> bool:
        try:
            EmailAddress(text)
        except ValidationFailed:
            return False
        return True

    local = st.text(ATEXT, min_size=1, max_size=12) | st.text(
        st.characters(min_codepoint=32, max_codepoint=126, exclude_characters='"\\'), max_size=12
    ).map(lambda text: f'"{text}"')
    return local.map(lambda text: f"{text}@example.com").filter(is_address)


@st.composite
def records(draw: st.DrawFn) -> UserRecord:
    email = draw(addresses())
    return UserRecord(
        position=1,
        id=draw(st.uuids()),
        email=email,
        mailbox=EmailAddress(email).mailbox,
        age=draw(st.integers(18, 130)),
        password_hash=PasswordHash(HASH),
        registered_at=draw(st.datetimes(datetime(1970, 1, 1), datetime(2026, 1, 1), timezones=st.just(UTC))),  # noqa: DTZ001  # hypothesis adds the zone
    )


@pytest.mark.parametrize("form", Format)
@given(everybody=st.lists(records(), max_size=5))
def test_an_export_is_read_unchanged(form: Format, everybody: Sequence[UserRecord]) -> None:
    writer = Writer(form, with_password_hashes=True)
    content = writer.head() + b"".join(writer.body([record]) for record in everybody)
    assert [load_row(line.values) for line in lines(content, form)] == [
        ImportRow(record.email, record.age, record.password_hash, record.id, record.registered_at)
        for record in everybody
    ]


@given(everybody=st.lists(records(), max_size=5))
def test_no_cell_of_an_exported_file_is_a_formula(everybody: Sequence[UserRecord]) -> None:
    writer = Writer(Format.CSV, with_password_hashes=True)
    content = writer.head() + writer.body(everybody)
    for cells in csv.reader(io.StringIO(content.decode(), newline="")):
        assert not any(is_formula(cell) for cell in cells)


RECORD = UserRecord(
    position=7,
    id=UUID("0b9f6f1c-58ab-4f5c-9d5f-0f6b9a3a3a3a"),
    email='=cmd|"/c"@example.com',
    mailbox="-",
    age=30,
    password_hash=PasswordHash(HASH),
    registered_at=datetime(2001, 2, 3, tzinfo=timezone(timedelta(0))),
)


def test_csv_output() -> None:
    writer = Writer(Format.CSV, with_password_hashes=False)
    assert writer.head() + writer.body([RECORD]) == (
        b"id,email,age,registered_at\r\n"
        b'0b9f6f1c-58ab-4f5c-9d5f-0f6b9a3a3a3a,"\'=cmd|""/c""@example.com",30,2001-02-03T00:00:00.000000Z\r\n'
    )


@pytest.mark.parametrize("form", Format)
def test_hashes_are_written_on_request_only(form: Format) -> None:
    with_hashes, without = (Writer(form, with_password_hashes=wanted) for wanted in (True, False))
    assert b"password_hash" not in without.head() + without.body([RECORD])
    assert HASH.encode() not in without.head() + without.body([RECORD])
    assert b"password_hash" in with_hashes.head() + with_hashes.body([RECORD])
    assert HASH.encode() in with_hashes.body([RECORD])


def test_ndjson_output() -> None:
    written = Writer(Format.NDJSON, with_password_hashes=False).body([RECORD])
    assert written.endswith(b"\n")
    assert json.loads(written) == {
        "id": "0b9f6f1c-58ab-4f5c-9d5f-0f6b9a3a3a3a",
        "email": '=cmd|"/c"@example.com',
        "age": 30,
        "registered_at": "2001-02-03T00:00:00.000000Z",
    }
