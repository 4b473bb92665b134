"""The HTTP interface in the words of its contract: what clients send, and what every answer looks like."""

import re
from typing import Any, NamedTuple
from uuid import UUID, uuid4

import httpx

PASSWORD = "correct horse battery staple"

_REGISTERED_AT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z")


def person(**changes: object) -> dict[str, Any]:
    """What a person who is not registered yet would send."""
    return {"email": f"{uuid4().hex}@example.com", "password": PASSWORD, "age": 30} | changes


def register(client: httpx.Client, **changes: object) -> dict[str, Any]:
    """Register somebody and give the user as the answer shows it."""
    response = client.post("/register", json=person(**changes))
    assert response.status_code == 201, response.text
    user: dict[str, Any] = response.json()["data"]
    return user


def pages_from(client: httpx.Client, link: str | None) -> list[list[dict[str, Any]]]:
    """Every page from a link on, by following ``links.next`` to the end."""
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


def users_from(client: httpx.Client, link: str) -> list[dict[str, Any]]:
    return [user for page in pages_from(client, link) for user in page]


def assert_user(user: dict[str, Any], sent: dict[str, Any]) -> None:
    assert user == {
        "id": user["id"],
        "email": sent["email"],
        "age": sent["age"],
        "registered_at": user["registered_at"],
    }
    assert str(UUID(user["id"])) == user["id"]
    assert UUID(user["id"]).version == 7
    assert _REGISTERED_AT.fullmatch(user["registered_at"])


def assert_common_headers(response: httpx.Response) -> None:
    assert response.headers["X-Request-ID"]
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert response.headers["Cache-Control"] == "no-store"
    assert "Server" not in response.headers


def assert_problem(response: httpx.Response, status: int, code: str) -> dict[str, Any]:
    """Check all that is the same for every error, and give the document."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    assert_common_headers(response)
    document: dict[str, Any] = response.json()
    always = {"type", "title", "status", "detail", "instance", "code"}
    assert set(document) == (always | {"errors"} if code == "validation-failed" else always)
    assert document["code"] == code
    assert document["status"] == status
    assert document["type"] == f"/problems/{code}"
    assert document["title"]
    assert document["detail"]
    assert response.headers["X-Request-ID"] in httpx.URL(document["instance"]).path
    return document


def broken(document: dict[str, Any]) -> set[tuple[str, str]]:
    """The fields and codes of a validation error."""
    for error in document["errors"]:
        assert set(error) == {"field", "code", "message"}
        assert error["message"]
    return {(error["field"], error["code"]) for error in document["errors"]}


class RawResponse(NamedTuple):
    """A response as it came over the wire, and what came behind its head."""

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
    """All responses of a connection; each one's ``rest`` is its own body."""
    responses = []
    while raw:
        response = RawResponse.read(raw)
        length = int(response.headers["content-length"])
        assert len(response.rest) >= length
        responses.append(response._replace(rest=response.rest[:length]))
        raw = response.rest[length:]
    return responses
