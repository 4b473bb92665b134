"""The HTTP interface in the words of its contract: what clients send, and what responses have in common."""

from typing import Any, NamedTuple
from uuid import uuid4

import httpx

PASSWORD = "correct horse battery staple"


def person(**changes: object) -> dict[str, Any]:
    """The body of a registration with a new address."""
    return {"email": f"{uuid4().hex}@example.com", "password": PASSWORD, "age": 30} | changes


def register(client: httpx.Client, **changes: object) -> dict[str, Any]:
    """Register a user, and return it as in the response."""
    response = client.post("/register", json=person(**changes))
    assert response.status_code == 201, response.text
    user: dict[str, Any] = response.json()["data"]
    return user


def pages_from(client: httpx.Client, link: str | None) -> list[list[dict[str, Any]]]:
    """All pages from a link on, following ``links.next``."""
    pages = []
    while link is not None:
        response = client.get(link)
        assert response.status_code == 200, response.text
        document = response.json()
        assert document["links"]["self"] == link
        pages.append(document["data"])
        link = document["links"]["next"]
        assert response.headers.get("Link") == (None if link is None else f'<{link}>; rel="next"')
    return pages


def assert_common_headers(response: httpx.Response) -> None:
    assert response.headers["X-Request-ID"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "no-store"
    assert "Server" not in response.headers


def assert_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check what all problems have in common, and return the document."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    assert_common_headers(response)
    document: dict[str, Any] = response.json()
    errors = {"errors"} if code == "validation-failed" else set()
    assert set(document) == {"type", "title", "status", "detail", "instance", "code"} | errors
    assert (document["type"], document["status"], document["code"]) == (f"/problems/{code}", status, code)
    assert document["title"]
    assert document["detail"]
    assert response.headers["X-Request-ID"] in httpx.URL(document["instance"]).path
    return document


class RawResponse(NamedTuple):
    """The head of a response from the wire, and all bytes after it."""

    status: int
    headers: dict[str, str]
    rest: bytes

    @classmethod
    def read(cls, raw: bytes) -> "RawResponse":
        head, end, rest = raw.partition(b"\r\n\r\n")
        assert end, raw
        status_line, *lines = head.decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return cls(int(status_line.split(" ")[1]), headers, rest)


def read_responses(raw: bytes) -> list[RawResponse]:
    """All responses of a connection; the ``rest`` of each is its own body."""
    responses = []
    while raw:
        response = RawResponse.read(raw)
        length = int(response.headers["content-length"])
        assert len(response.rest) >= length
        responses.append(response._replace(rest=response.rest[:length]))
        raw = response.rest[length:]
    return responses
