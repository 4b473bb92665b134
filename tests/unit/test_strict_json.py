import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usersvc import strict_json
from usersvc.strict_json import InvalidJson

SECRET = "hunter2hunter2"

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(json_values)
def test_parses_any_json(value: Any) -> None:
    assert strict_json.loads(json.dumps(value).encode()) == value


@given(st.binary(max_size=200))
def test_parses_or_refuses_any_bytes(body: bytes) -> None:
    with contextlib.suppress(InvalidJson):
        strict_json.loads(body)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}{}",
        b"{'a': 1}",
        b'{"a": 01}',
        b'{"a": NaN}',
        b'{"a": Infinity}',
        b'{"a": -Infinity}',
        b'{"a": 1, "a": 2}',
        b'{"a": {"b": 1, "\\u0062": 2}}',
        b'\xef\xbb\xbf{"a": 1}',
        '{"a": 1}'.encode("utf-16"),
        '{"a": 1}'.encode("utf-32-be"),
        b'{"a": "\xc0\xaf"}',
        b'{"a": "\xff"}',
        b'{"a": "\xed\xa0\x80"}',
        b"[" * 33 + b"]" * 33,
        b'{"a":' * 33 + b"1" + b"}" * 33,
        b"[" * 100_000,
        # With a backtracking regular expression, these would take hours.
        b'"' + b'\\"' * 500_000,
        b'"' * 500_001,
    ],
)
def test_refuses(body: bytes) -> None:
    with pytest.raises(InvalidJson):
        strict_json.loads(body)


def test_accepts_32_levels_and_brackets_inside_strings() -> None:
    assert strict_json.loads(b"[" * 32 + b"]" * 32)
    assert strict_json.loads(b'{"a": "' + b'[{\\"' * 100 + b'"}')


@pytest.mark.parametrize("digits", [10, 1000, 1001, 5000, 16000])
def test_parses_numbers_of_any_length(digits: int) -> None:
    number = strict_json.loads(b"9" * digits)
    assert number > 130


@pytest.mark.parametrize(
    "body",
    [
        f'{{"password": "{SECRET}", "password": "{SECRET}"}}',
        f'{{"password": "{SECRET}"',
        f'{{"password": {SECRET}}}',
        f'{{"{SECRET}": NaN}}',
    ],
)
def test_message_does_not_quote_the_text(body: str) -> None:
    with pytest.raises(InvalidJson) as refused:
        strict_json.loads(body.encode())
    assert SECRET not in str(refused.value)
    assert refused.value.__suppress_context__ or refused.value.__context__ is None
