"""Files of users: how they are read, how they are written, and that an export is read unchanged."""

import csv
import io
import unicodedata
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from usersvc.application.read_models import UserRecord
from usersvc.application.user_import import ImportRow
from usersvc.cli.output import Failure
from usersvc.cli.reader import MAX_RECORD_BYTES, Record, Source, load_row, read_records
from usersvc.cli.user_files import CSV, FORMATS, NDJSON, PUBLIC, encode, escape, head, unescape
from usersvc.domain.errors import ValidationFailed

HASH = "$2y$10$DwS6fdNzX/WPAc/7zf2M/.qmrVXRRwhq.5Exus5uxZCvdNbH7pfDS"
HEAD = b"email,age,password_hash\n"


def read(content: bytes, form: str = CSV, *, ignore_unknown: bool = False) -> list[Record]:
    return [*read_records(Source(io.BytesIO(content)), form, ignore_unknown=ignore_unknown)]


def row(record: Record) -> ImportRow:
    assert isinstance(record.row, ImportRow)
    return record.row


def codes(record: Record) -> list[str]:
    return [violation.code for violation in record.row.violations] if isinstance(record.row, ValidationFailed) else []


# --- CSV ------------------------------------------------------------------------------------------------------------


def test_columns_are_read_by_name() -> None:
    [record] = read(b'age,password_hash,email\r\n30,"$2y$","al""ice@example.com"\r\n')
    assert row(record) == ImportRow('al"ice@example.com', 30, "$2y$")
    assert (record.first, record.last, record.text) == (2, 2, '30,"$2y$","al""ice@example.com"')


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
    [record] = read(content)
    assert row(record) == ImportRow("a@b.c", 30, "x")


@pytest.mark.parametrize(
    ("first_line", "message"),
    [
        (b"", "missing: email, age, password_hash"),
        (b"email;age;password_hash\n", "missing: email, age, password_hash"),
        (b"Email,age,password_hash\n", "missing: email"),
        (b'"email,age,password_hash\n', "lines 1 to 2 cannot be read: unexpected end of data"),
        ("email,age,password_hash\n".encode("utf-16"), "missing: email"),
        (b"email,age,password_hash," + b"x" * MAX_RECORD_BYTES + b"\n", f"more than {MAX_RECORD_BYTES} bytes"),
        (b"email,age,password_hash,age\n", "a column twice"),
        (b"email,age,password_hash,name,\x1b[2J\n", r"'name', '\x1b[2J'; see --ignore-unknown"),
    ],
)
def test_a_first_line_without_the_columns_is_refused(first_line: bytes, message: str) -> None:
    with pytest.raises(Failure) as refused:
        read(first_line + b"a@b.c,30,x,y,z\n")
    assert message in str(refused.value)


def test_an_invalid_csv_record_does_not_stop_the_others() -> None:
    records = [
        ("a@b.c,30", ["wrong-number-of-cells"]),
        ("\\xff@b.c,30,x", ["invalid-utf-8"]),
        ("a@b.c,30,x,y", ["wrong-number-of-cells"]),
        ("b@b.c,31,y", []),
        ('"a\n",30,x,"y\n"', ["wrong-number-of-cells"]),
        ('"a\n\nb",30,x', []),
        ('a"@b.c,30,x', []),
    ]
    content = "".join(f"{text}\n" for text, _ in records).encode().replace(b"\\xff", b"\xff")
    found = read(HEAD + content)
    assert [(record.text, codes(record)) for record in found] == records
    assert [(record.first, record.last) for record in found[3:]] == [(5, 5), (6, 8), (9, 11), (12, 12)]
    assert [row(record).email for record in found if not codes(record)] == ["b@b.c", "a\n\nb", 'a"@b.c']


FORGED = "admin@b.c,99,x"


@pytest.mark.parametrize(
    ("record", "last", "reason"),
    [
        ('b@b.c,30,"x\n', 5, "unexpected end of data"),
        (f'b@b.c,"30"1,"x\n{FORGED}\n"', 3, "',' expected after '\"'"),
        ('b@b.c,30,"x\n' + "a@b.c,30,x\n" * MAX_RECORD_BYTES, 5960, f"more than {MAX_RECORD_BYTES} bytes"),
        (f'"{"z" * MAX_RECORD_BYTES}\n{FORGED}\n",30,x\n', 3, f"more than {MAX_RECORD_BYTES} bytes"),
        ("z" * 10 * MAX_RECORD_BYTES + ",30,x\n", 3, f"more than {MAX_RECORD_BYTES} bytes"),
    ],
)
def test_malformed_csv_ends_the_reading_so_that_no_part_of_a_cell_becomes_a_user(
    record: str, last: int, reason: str
) -> None:
    source = Source(io.BytesIO(HEAD + f"a@b.c,30,x\n{record}c@b.c,30,x\n{FORGED}".encode()))
    records = read_records(source, CSV, ignore_unknown=False)
    assert row(next(records)).email == "a@b.c"
    with pytest.raises(Failure) as failure:
        next(records)
    where = "line 3" if last == 3 else f"lines 3 to {last}"
    assert str(failure.value) == f"{where} cannot be read: {reason}; nothing from line 3 on was imported"
    assert [*records] == []
    # An unclosed quotation mark does not cause the whole file to be read and kept.
    assert source.bytes_read < 3 * MAX_RECORD_BYTES


@pytest.mark.parametrize("age", ["", " 30", "+30", "3e1", "30.0", "٣٠", "0x1e", "1_0", "9" * 5000])
def test_only_digits_are_an_age(age: str) -> None:
    [record] = read(HEAD + f"a@b.c,{age},{HASH}\n".encode())
    assert codes(record) == ["wrong-type" if age else "required"]


# --- NDJSON ---------------------------------------------------------------------------------------------------------


def test_an_ndjson_line_is_read() -> None:
    content = '{"age":30,"password_hash":"x","email":"ä@b.c","id":null}\r\n\n  \n{"email":1}'.encode()
    valid, invalid = read(content, NDJSON)
    assert (valid.first, row(valid)) == (1, ImportRow("ä@b.c", 30, "x"))
    assert (invalid.first, codes(invalid)) == (4, ["wrong-type", "required", "required"])


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"{", "malformed-json"),
        (b"[]", "malformed-json"),
        (b'{"email":"a@b.c","email":"c@b.c"}', "malformed-json"),
        (b'{"email":"\xff"}', "invalid-utf-8"),
        (b'{"name":"Al"}', "unknown-member"),
    ],
)
def test_an_invalid_ndjson_line_does_not_stop_the_others(content: bytes, code: str) -> None:
    invalid, valid = read(content + b'\n{"email":"b@b.c","age":30,"password_hash":"x"}\n', NDJSON)
    assert codes(invalid) == [code]
    assert (valid.first, row(valid).email) == (2, "b@b.c")


def test_an_ndjson_line_that_is_too_long_is_refused() -> None:
    with pytest.raises(Failure, match=r"^line 2 cannot be read: more than 65536 bytes"):
        read(b"{}\n" + b"a" * 10 * MAX_RECORD_BYTES, NDJSON)


def test_unknown_members_are_ignored_on_request() -> None:
    content = b'{"email":"a@b.c","name":"Al","age":30,"password_hash":"x"}'
    assert row(read(content, NDJSON, ignore_unknown=True)[0]) == ImportRow("a@b.c", 30, "x")


# --- row schema -----------------------------------------------------------------------------------------------------

GOOD: dict[str, Any] = {"email": "alice@example.com", "age": 30, "password_hash": HASH}


def violations(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    with pytest.raises(ValidationFailed) as refused:
        load_row(values)
    return [(violation.field, violation.code) for violation in refused.value.violations]


def test_a_record_is_converted() -> None:
    user_id = uuid4()
    values = GOOD | {"id": str(user_id).upper(), "registered_at": "2001-02-03t04:05:06.5+02:00"}
    assert load_row(values) == ImportRow(
        "alice@example.com", 30, HASH, user_id, datetime(2001, 2, 3, 2, 5, 6, 500000, tzinfo=UTC)
    )


def test_all_violations_are_reported_at_once_with_those_of_rules() -> None:
    bad = {"email": "nobody", "age": "thirty", "password_hash": "hunter2", "id": "1", "registered_at": "now"}
    assert violations(bad) == [
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
        ("password_hash", {"hash": HASH}, "wrong-type"),
        ("id", 1, "invalid-uuid"),
        ("id", "{0b9f6f1c-58ab-4f5c-9d5f-0f6b9a3a3a3a}", "invalid-uuid"),
        ("id", "0b9f6f1c58ab4f5c9d5f0f6b9a3a3a3a", "invalid-uuid"),
        ("registered_at", 981173106, "invalid-time"),
        ("registered_at", "2001-02-03T04:05:06", "invalid-time"),
        ("registered_at", "2001-02-30T04:05:06Z", "invalid-time"),
        ("registered_at", "0001-01-01T00:00:00+01:00", "invalid-time"),
    ],
)
def test_a_wrong_value_has_a_code(name: str, value: object, code: str) -> None:
    assert violations(GOOD | {name: value}) == [(name, code)]


# --- CSV injection --------------------------------------------------------------------------------------------------


def is_formula(cell: str) -> bool:
    """Whether a spreadsheet may run a cell, also after skipping characters at its beginning."""
    skipped = {"Zs", "Zl", "Zp", "Cc"}
    visible = [each for each in cell if unicodedata.category(each) not in skipped and each not in '"＂\ufeff']
    return cell.startswith(("\t", "\r", "\n")) or (bool(visible) and visible[0] in "=+-@＝＋－＠﹦﹢﹣﹫")


@given(st.text() | st.text("'=;a") | st.text(" \t\x00\x7f\u3000\ufeff\"=+-@＝＋－＠﹦﹢﹣﹫;'a"))
@example("''")
@example('"x; =1+1;"@example.com')
@example("\xa0=1+1")
@example(" '=1+1")
def test_an_escaped_cell_is_not_a_formula_and_is_unescaped(cell: str) -> None:
    # A semicolon may end a cell.
    for part in escape(cell).split(";"):
        assert not is_formula(part)
    assert unescape(escape(cell)) == cell


@pytest.mark.parametrize(
    ("cell", "escaped"),
    [
        ('"x; =1+1"@example.com', '"x;\' =1+1"@example.com'),
        ('x;"=1+1"', 'x;\'"=1+1"'),
        ("'x", "''x"),
        ('"a = b"@example.com', '"a = b"@example.com'),
    ],
)
def test_a_formula_is_escaped_with_an_apostrophe(cell: str, escaped: str) -> None:
    assert escape(cell) == escaped
    # Other cells are read unchanged.
    assert unescape("'bob@example.com") == "'bob@example.com"


# --- export ---------------------------------------------------------------------------------------------------------

WITH_HASH = (*PUBLIC, "password_hash")

RECORDS = st.builds(
    UserRecord,
    position=st.just(1),
    email=st.text(min_size=1),
    mailbox=st.just("-"),
    age=st.integers(18, 130),
    password_hash=st.just(HASH),
    registered_at=st.datetimes(datetime(1970, 1, 1), timezones=st.just(UTC)),  # noqa: DTZ001  # hypothesis adds the zone
)


@pytest.mark.parametrize("form", FORMATS)
@given(exported=st.lists(RECORDS, max_size=5))
def test_an_export_is_read_unchanged_and_has_no_formula(form: str, exported: Sequence[UserRecord]) -> None:
    content = head(form, WITH_HASH) + b"".join(encode(form, WITH_HASH, [record]) for record in exported)
    assert [row(record) for record in read(content, form)] == [
        ImportRow(record.email, record.age, record.password_hash, record.id, record.registered_at)
        for record in exported
    ]
    if form == CSV:
        for cells in csv.reader(io.StringIO(content.decode(), newline="")):
            assert not any(is_formula(cell) for cell in cells)
