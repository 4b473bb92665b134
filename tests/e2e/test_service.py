"""The HTTP contract, from outside: a real process, a real SQLite file, real sockets."""

import re
import time

import httpx
import pytest

from tests.e2e.api import assert_common_headers, assert_problem, assert_user, person, read_responses
from tests.e2e.server import Service, StartService
from usersvc.application.readiness import CHECK_INTERVAL

BODY_LIMIT = 16384


def test_the_index_links_to_every_resource(client: httpx.Client) -> None:
    response = client.get("/")

    assert response.status_code == 200
    assert_common_headers(response)
    assert response.json()["data"]["name"] == "usersvc"
    links = response.json()["links"]
    assert set(links) == {"self", "register", "users", "docs", "openapi", "livez", "readyz", "metrics"}
    statuses = {name: client.get(link).status_code for name, link in links.items()}
    assert statuses == dict.fromkeys(links, 200) | {"register": 405}
    assert client.get(links["readyz"]).json() == client.get(links["livez"]).json() == {"data": {"status": "ok"}}


def test_a_registration_returns_the_user_and_its_location(client: httpx.Client) -> None:
    sent = person(age=18)

    response = client.post("/register", json=sent, headers={"X-Request-ID": "the-one"})

    assert response.status_code == 201
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["X-Request-ID"] == "the-one"
    assert_common_headers(response)
    assert set(response.json()) == {"data"}
    user = response.json()["data"]
    assert_user(user, sent)
    assert response.headers["Location"] == f"/users/{user['id']}"
    assert client.get(response.headers["Location"]).json() == {"data": user}


def test_readiness_probes_share_storage_checks(start: StartService) -> None:
    with start().client() as client:
        begun = time.monotonic()
        assert {client.get("/readyz").status_code for _ in range(100)} == {200}
        metrics = client.get("/metrics").text
    [checks] = re.findall(r'usersvc_storage_call_duration_seconds_count{operation="check"} (.+)\n', metrics)
    assert 1 <= float(checks) <= 1 + (time.monotonic() - begun) / CHECK_INTERVAL


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_rejected_body_is_not_parsed_as_the_next_request(service: Service, framing: str) -> None:
    smuggled = b"GET /users/smuggled HTTP/1.1\r\nHost: test\r\n\r\n"
    body = smuggled * (2 * BODY_LIMIT // len(smuggled))
    head = b"POST /register HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
    if framing == "length":
        request = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    else:
        request = head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    last = b"GET /livez HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"

    responses = read_responses(service.talk(request + last))

    # The connection either continues after the body or is closed.
    assert [response.status for response in responses] in ([413], [413, 200])


def test_an_unknown_content_coding_is_rejected(client: httpx.Client) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "aes128gcm"}
    assert_problem(client.post("/register", content=b"{}", headers=headers), 415, "unsupported-media-type")


def test_an_unknown_expectation_is_ignored_or_rejected_with_a_problem(client: httpx.Client) -> None:
    response = client.get("/livez", headers={"Expect": "the-unexpected"})

    assert_common_headers(response)
    assert response.headers["Content-Type"] == f"application/{'json' if response.is_success else 'problem+json'}"
