"""Strict JSON (RFC 8259 and I-JSON, RFC 7493): texts that two parsers could read differently are rejected."""

import json
import re
from typing import Any, Never

MAX_DEPTH = 32
"""Maximum nesting of arrays and objects, far below the recursion limit of the parser."""

_MAX_DIGITS = 1000
# Possessive, with an optional end: the match never backtracks.
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*+"?', re.DOTALL)
_BRACKET = re.compile(rb"[\[\]{}]")


class InvalidJson(ValueError):
    """The text is not strict JSON. The message continues a sentence ("is not valid UTF-8") and quotes nothing of it."""


def loads(text: bytes) -> Any:
    """Parse one JSON text.

    Raises:
        InvalidJson: a syntax error, not UTF-8, a duplicate member name, NaN or Infinity, or nested deeper than
            ``MAX_DEPTH``.
    """
    try:
        decoded = text.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidJson("is not valid UTF-8") from None
    if _depth(text) > MAX_DEPTH:
        raise InvalidJson(f"is nested deeper than {MAX_DEPTH} levels")
    try:
        return json.loads(decoded, object_pairs_hook=_members, parse_constant=_refuse_constant, parse_int=_number)
    except json.JSONDecodeError as error:
        raise InvalidJson(f"is not valid JSON: line {error.lineno}, column {error.colno}") from None


def _depth(text: bytes) -> int:
    deepest = depth = 0
    for bracket in _BRACKET.findall(_STRING.sub(b"", text)):
        depth += 1 if bracket in (b"[", b"{") else -1
        deepest = max(deepest, depth)
    return deepest


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise InvalidJson("contains an object with a duplicate member name")
    return members


def _refuse_constant(_: str) -> Never:
    raise InvalidJson("contains NaN or Infinity")


def _number(digits: str) -> int | float:
    # Python raises a plain ValueError for longer integers, since parsing them takes quadratic time.
    return int(digits) if len(digits) <= _MAX_DIGITS else float(digits)
