"""The HTTP contract, from outside: a real process, a real SQLite file, real sockets."""

import httpx
import pytest

from tests.e2e.api import assert_common_headers, assert_problem, read_responses
from tests.e2e.server import Service


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


SMUGGLED = b"GET /users/smuggled HTTP/1.1\r\nHost: test\r\n\r\n" * 1000
FRAMED = (b"Content-Length: %d\r\n\r\n%b", b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n")


@pytest.mark.parametrize("framed", FRAMED, ids=["length", "chunked"])
def test_a_rejected_body_is_not_parsed_as_the_next_request(service: Service, framed: bytes) -> None:
    head = b"POST /register HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
    last = b"GET /livez HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
    responses = read_responses(service.talk(head + framed % (len(SMUGGLED), SMUGGLED) + last))
    # The connection either continues after the body or is closed.
    assert [response.status for response in responses] in ([413], [413, 200])


def test_an_unknown_content_coding_is_rejected(client: httpx.Client) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "aes128gcm"}
    assert_problem(client.post("/register", content=b"{}", headers=headers), 415, "unsupported-media-type")


def test_an_unknown_expectation_is_ignored_or_rejected_with_a_problem(client: httpx.Client) -> None:
    response = client.get("/livez", headers={"Expect": "the-unexpected"})

    assert_common_headers(response)
    assert response.headers["Content-Type"] == f"application/{'json' if response.is_success else 'problem+json'}"
