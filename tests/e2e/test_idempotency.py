"""``Idempotency-Key`` on the real service."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.e2e.api import PASSWORD, assert_problem, person
from tests.e2e.server import StartService


def key() -> dict[str, str]:
    return {"Idempotency-Key": str(uuid4())}


def test_a_repeat_is_answered_as_the_first_was(client: httpx.Client) -> None:
    body, named = person(), key()
    first = client.post("/register", json=body, headers=named)
    second = client.post("/register", json=body, headers=named)

    assert (first.status_code, second.status_code) == (201, 201)
    assert second.content == first.content
    assert second.headers["Location"] == first.headers["Location"]
    assert second.headers["Idempotency-Replayed"] == "true"
    assert "Idempotency-Replayed" not in first.headers
    assert_problem(client.post("/register", json=body, headers=key()), 409, "email-taken")
    assert_problem(client.post("/register", json=body), 409, "email-taken")


def test_another_body_is_refused(client: httpx.Client) -> None:
    body, named = person(), key()
    client.post("/register", json=body, headers=named)
    for other in (person(), body | {"age": 31}, body | {"password": PASSWORD[::-1]}):
        assert_problem(client.post("/register", json=other, headers=named), 422, "idempotency-key-reused")


def test_trying_passwords_under_a_key_costs_hashes_and_counts_against_the_limit(start: StartService) -> None:
    service = start(USERSVC_REGISTER_RATE="5/hour")
    body, named = person(), key()
    with service.client() as client:
        assert client.post("/register", json=body, headers=named).status_code == 201
        for other in (body | {"password": PASSWORD[::-1]}, body | {"age": 31}, person(), person(password="x" * 20)):
            answer = client.post("/register", json=other, headers=named)
            assert_problem(answer, 422, "idempotency-key-reused")
            assert "RateLimit" in answer.headers
        assert_problem(client.post("/register", json=body, headers=named), 429, "rate-limited")
        metrics = client.get("/metrics").text
    for operation, count in (("hash", 1), ("verify", 4)):
        assert f'usersvc_hashing_duration_seconds_count{{operation="{operation}"}} {count}.0' in metrics


def test_many_at_once_make_one_user_and_equal_answers(client: httpx.Client) -> None:
    body, named = person(), key()
    with ThreadPoolExecutor(8) as threads:
        answers = [*threads.map(lambda _: client.post("/register", json=body, headers=named), range(8))]

    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert sum("Idempotency-Replayed" in answer.headers for answer in answers) == 7
    assert len(client.get("/users", params={"email": body["email"]}).json()["data"]) == 1


def test_a_key_is_known_after_a_restart_and_is_not_stored_itself(start: StartService, tmp_path: Path) -> None:
    body, named = person(), key()
    service = start()
    with service.client() as client:
        first = client.post("/register", json=body, headers=named)
    service.kill()
    stored = b"".join(file.read_bytes() for file in tmp_path.glob("usersvc.db*"))
    assert named["Idempotency-Key"].encode() not in stored
    assert PASSWORD.encode() not in stored

    with start().client() as client:
        second = client.post("/register", json=body, headers=named)
    assert second.headers["Idempotency-Replayed"] == "true"
    assert second.content == first.content


@pytest.mark.parametrize("good", ["x", "!", "~" * 255, '"quoted"', "a,b;c=d"])
def test_a_key_is_visible_ascii(client: httpx.Client, good: str) -> None:
    # Of its own in each run, where there is room.
    named = {"Idempotency-Key": good if len(good) == 255 else f"{good}{uuid4()}"}
    body = person()
    answers = [client.post("/register", json=body, headers=named) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 201]
    assert answers[1].content == answers[0].content


@settings(max_examples=50, deadline=None)
@given(bad=st.one_of(st.just(b""), st.just(b"x" * 256), st.binary(max_size=300)))
def test_what_is_no_key_is_told_with_all_that_is_wrong(client: httpx.Client, bad: bytes) -> None:
    # What no header can hold, and what a header loses at its ends.
    bad = bytes(byte for byte in bad if byte not in b"\r\n\0").strip()
    if bad and len(bad) <= 255 and all(0x21 <= byte <= 0x7E for byte in bad):
        return
    if any((byte < 0x20 and byte != 0x09) or byte == 0x7F for byte in bad):
        return
    request = client.build_request("POST", "/register", json=person(age=3), headers=[(b"Idempotency-Key", bad)])
    document = assert_problem(client.send(request), 422, "validation-failed")
    assert {error["field"] for error in document["errors"]} == {"Idempotency-Key", "age"}


def test_two_keys_are_none(client: httpx.Client) -> None:
    headers = [("Idempotency-Key", "one"), ("Idempotency-Key", "two")]
    document = assert_problem(
        client.post("/register?x=1", json=person(age=3), headers=headers), 422, "validation-failed"
    )
    assert [(error["field"], error["code"]) for error in document["errors"]] == [
        ("x", "unknown-field"),
        ("Idempotency-Key", "repeated"),
        ("age", "out-of-range"),
    ]
