from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from usersvc.application.read_models import Order
from usersvc.web.cursor import Cursor
from usersvc.web.middleware.content_negotiation import MAX_ACCEPT, weight


@given(st.sampled_from(Order), st.integers(1, 10**18 - 1))
def test_cursor_survives_encoding_and_decoding(order: Order, after: int) -> None:
    assert Cursor.decode(Cursor(order, after).encode()) == Cursor(order, after)


@given(
    st.text()
    # What decodes to a cursor, but is written otherwise: padded, spaced, or with other bits after the last byte.
    | st.builds(
        lambda text, at, other: text[:at] + other + text[at + 1 :],
        st.builds(lambda order, after: Cursor(order, after).encode(), st.sampled_from(Order), st.integers(1, 10**6)),
        st.integers(0, 20),
        st.sampled_from("=ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_+/ "),
    )
)
def test_any_other_text_is_refused(text: str) -> None:
    with suppress(ValueError):
        assert Cursor.decode(text).encode() == text


@pytest.mark.parametrize(
    "raw", ["YXNjLjA", "YXNjLjE=", "YXNjLjE ", "YXNjLjF", "YXNjLi0x", "dXAuMQ", "YXNjLjk5OTk5OTk5OTk5OTk5OTk5OTk5"]
)
def test_text_that_resembles_a_cursor_is_refused(raw: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # the error of the standard library is one, too
        Cursor.decode(raw)


@pytest.mark.parametrize(
    ("accept", "accepted"),
    [
        *((accept, True) for accept in ("", "*/*", "Application/JSON", "application/*", "nonsense", ",")),
        ("text/html, application/json;q=0.1", True),
        ("application/json; version=1", True),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", True),
        ("*/*;q=0, application/json", True),
        ("application/json;q=high", True),
        *((accept, False) for accept in ("text/html", "application/jsonx", "application/json;q=0", "*/*;q=0")),
        ("application/json;q=0.000, */*", False),
        ("application/xml, text/*", False),
        ("application/*;q=0, */*;q=1", False),
    ],
)
def test_accept_header_may_exclude_json(accept: str, accepted: bool) -> None:
    assert (weight(accept, "application/json") > 0) == accepted


def test_end_of_a_long_accept_header_is_ignored() -> None:
    assert weight("application/json;q=0," + "text/html," * 50, "application/json") == 0
    assert weight("text/html," * 1000 + "application/json", "application/json") == 0
    # A range that is cut is ignored as well.
    cut = "text/html, " + "x" * (MAX_ACCEPT - 28) + ",application/json;q=0"
    assert cut[:MAX_ACCEPT].endswith("application/json")
    assert weight(cut, "application/json") == 0
    assert weight("application/json;" + "x" * MAX_ACCEPT, "application/json") == 1


@pytest.mark.parametrize(
    ("accept", "preferred"),
    [
        ("application/x-ndjson", "application/x-ndjson"),
        ("application/json;q=0.5, application/x-ndjson", "application/x-ndjson"),
        ("application/json, application/x-ndjson;q=0.9", "application/json"),
        ("application/json, application/x-ndjson", "application/json"),
        ("application/*;q=0.1, application/x-ndjson;q=0.2", "application/x-ndjson"),
        ("*/*", "application/json"),
        ("", "application/json"),
    ],
)
def test_media_type_with_more_weight_is_preferred(accept: str, preferred: str) -> None:
    offered = ["application/json", "application/x-ndjson"]
    assert max(offered, key=lambda media_type: weight(accept, media_type)) == preferred
