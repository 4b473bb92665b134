"""``Idempotency-Key`` on the real service."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import httpx

from tests.e2e.api import PASSWORD, assert_problem, person
from tests.e2e.server import StartService


def key() -> dict[str, str]:
    return {"Idempotency-Key": str(uuid4())}


def test_repeat_gets_the_first_response(client: httpx.Client) -> None:
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


def test_repeats_cost_hashes_and_count_against_the_rate_limit(start: StartService) -> None:
    service = start(USERSVC_REGISTER_RATE="5/hour")
    body, named = person(), key()
    with service.client() as client:
        assert client.post("/register", json=body, headers=named).status_code == 201
        for other in (body | {"password": PASSWORD[::-1]}, body | {"age": 31}, person(), person(password="x" * 20)):
            response = client.post("/register", json=other, headers=named)
            assert_problem(response, 422, "idempotency-key-reused")
            assert "RateLimit" in response.headers
        assert_problem(client.post("/register", json=body, headers=named), 429, "rate-limited")
        metrics = client.get("/metrics").text
    for operation, count in (("hash", 1), ("verify", 4)):
        assert f'usersvc_hashing_duration_seconds_count{{operation="{operation}"}} {count}.0' in metrics


def test_concurrent_repeats_register_one_user(client: httpx.Client) -> None:
    body, named = person(), key()
    with ThreadPoolExecutor(8) as threads:
        responses = [*threads.map(lambda _: client.post("/register", json=body, headers=named), range(8))]

    assert {response.status_code for response in responses} == {201}
    assert len({response.content for response in responses}) == 1
    assert sum("Idempotency-Replayed" in response.headers for response in responses) == 7
    assert len(client.get("/users", params={"email": body["email"]}).json()["data"]) == 1


def test_key_is_known_after_a_restart_and_not_stored_in_clear(start: StartService, tmp_path: Path) -> None:
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
