"""JSON without the latitude that parsers take: what two readers could understand differently is refused."""

import json
import re
from typing import Any, Never

from usersvc.web.problems import MalformedJson

MAX_DEPTH = 32
"""How deep arrays and objects may be nested; far from where a recursive parser ends its stack."""

_MAX_DIGITS = 1000
# Possessive and with an end that may be missing: so it never goes back, however the text was made to make it.
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")


def loads(body: bytes) -> Any:
    """Read one JSON text (RFC 8259) that keeps to I-JSON (RFC 7493) in encoding, member names and numbers.

    Raises:
        MalformedJson: a syntax error, not UTF-8, a member name twice, NaN or Infinity, or nested deeper than
            ``MAX_DEPTH``. The text never repeats anything of the body.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError:
        raise MalformedJson("The body is not UTF-8.") from None
    if _depth(body) > MAX_DEPTH:
        raise MalformedJson(f"The body is nested deeper than {MAX_DEPTH} levels.")
    try:
        return json.loads(text, object_pairs_hook=_members, parse_constant=_refuse_constant, parse_int=_whole_number)
    except json.JSONDecodeError as error:
        raise MalformedJson(f"The body is not JSON: see line {error.lineno}, column {error.colno}.") from None


def _depth(body: bytes) -> int:
    deepest = depth = 0
    for bracket in _BRACKET.findall(_STRING.sub(b"", body)):
        depth += 1 if bracket in (b"[", b"{") else -1
        deepest = max(deepest, depth)
    return deepest


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise MalformedJson("The body has an object with a member name twice.")
    return members


def _refuse_constant(_: str) -> Never:
    raise MalformedJson("The body holds NaN or Infinity, which are not JSON.")


def _whole_number(digits: str) -> int | float:
    # Python refuses to read longer integers, which is right (the time grows with the square), but by a ValueError.
    return int(digits) if len(digits) <= _MAX_DIGITS else float(digits)
