import pytest
from hypothesis import given
from hypothesis import strategies as st

from usersvc.web.middleware.authentication import AdminToken
from usersvc.web.problems import Unauthorized

TOKEN = "s3cret-s3cret-s3cret-s3cret"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_the_token_admits(scheme: str) -> None:
    AdminToken(TOKEN).admit([f"{scheme} {TOKEN}"])
    AdminToken(TOKEN).admit([f"{scheme}  {TOKEN}"])


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
def test_nothing_else_does(given: list[str]) -> None:
    with pytest.raises(Unauthorized) as refused:
        AdminToken(TOKEN).admit(given)
    assert refused.value.headers["WWW-Authenticate"] == 'Bearer realm="usersvc", error="invalid_token"'
    assert TOKEN not in str(refused.value)


def test_who_sent_none_is_told_what_to_send() -> None:
    with pytest.raises(Unauthorized) as refused:
        AdminToken(TOKEN).admit([])
    # RFC 6750, section 3.1: no error code for a request without any authentication.
    assert refused.value.headers == {}


@given(st.lists(st.text(), max_size=3))
def test_any_text_is_refused_and_never_a_failure(headers: list[str]) -> None:
    with pytest.raises(Unauthorized):
        AdminToken(TOKEN).admit(headers)
