import pytest
from hypothesis import given
from hypothesis import strategies as st

from usersvc.web.middleware.authentication import digest, matches

TOKEN = "s3cret-s3cret-s3cret-s3cret"


@pytest.mark.parametrize("authorization", [f"Bearer {TOKEN}", f"bearer {TOKEN}", f"BEARER  {TOKEN}"])
def test_token_is_accepted(authorization: str) -> None:
    assert matches([authorization], digest(TOKEN))


@pytest.mark.parametrize(
    "given",
    [
        ["Bearer"],
        ["Bearer "],
        ["Bearer wrong"],
        [f"Bearer {TOKEN}x"],
        [f"Bearer {TOKEN[:-1]}"],
        [f"Basic {TOKEN}"],
        [TOKEN],
        [f"Bearer {TOKEN}", f"Bearer {TOKEN}"],
        [f"Bearer {TOKEN},Bearer {TOKEN}"],
        [f"Bearer {TOKEN.upper()}"],
    ],
)
def test_anything_else_is_refused(given: list[str]) -> None:
    assert not matches(given, digest(TOKEN))


@given(st.lists(st.text(), min_size=1, max_size=3))
def test_any_text_is_refused_without_an_error(headers: list[str]) -> None:
    assert not matches(headers, digest(TOKEN))
