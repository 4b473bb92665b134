"""The HTTP contract, from outside: a real process, a real SQLite file, real sockets."""

import asyncio
import itertools
import json
import re
import time
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from uuid import UUID, uuid4

import httpx
import pytest

from tests.e2e.api import (
    RawResponse,
    assert_common_headers,
    assert_problem,
    assert_user,
    broken,
    person,
    read_responses,
)
from tests.e2e.server import Service, StartService
from usersvc.application.readiness import CHECK_INTERVAL

JSON = {"Content-Type": "application/json"}
NOBODY = UUID("01936f3c-5e1a-7b3c-9d2e-4f5a6b7c8d9e")


# --- what works -----------------------------------------------------------------------------------------------------


def test_the_index_leads_everywhere(client: httpx.Client) -> None:
    response = client.get("/")

    assert response.status_code == 200
    assert_common_headers(response)
    document = response.json()
    assert document["data"]["name"] == "usersvc"
    links = document["links"]
    assert links.pop("self") == "/"
    assert client.get(links.pop("register")).status_code == 405
    assert set(links) == {"users", "docs", "openapi", "livez", "readyz", "metrics"}
    for link in links.values():
        assert client.get(link).status_code == 200


def test_a_registration_answers_with_the_user_and_where_to_find_it(client: httpx.Client) -> None:
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
    found = client.get(response.headers["Location"])
    assert found.status_code == 200
    assert found.headers["Content-Type"] == "application/json"
    assert found.json() == {"data": user}


def test_head_leaves_the_connection_fit_for_the_next_request(service: Service) -> None:
    head = b"HEAD /openapi.json HTTP/1.1\r\nHost: test\r\n\r\n"
    last = b"GET /livez HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"

    answer = service.talk(head + last)

    first = RawResponse.read(answer)
    second = RawResponse.read(first.rest)
    assert (first.status, second.status) == (200, 200)
    assert json.loads(second.rest) == {"data": {"status": "ok"}}


def test_readiness_probes_share_checks_of_the_store(start: StartService) -> None:
    service = start()
    begun = time.monotonic()
    with ThreadPoolExecutor(8) as threads, service.client() as client:
        statuses = {*threads.map(lambda _: client.get("/readyz").status_code, range(200))}
        checks = re.findall(
            r'^usersvc_storage_call_duration_seconds_count{operation="check"} (.+)$',
            client.get("/metrics").text,
            re.MULTILINE,
        )
    assert statuses == {200}
    assert 1 <= float(checks[0]) <= 1 + (time.monotonic() - begun) / CHECK_INTERVAL


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_the_process_and_its_storage_answer(client: httpx.Client, path: str) -> None:
    response = client.get(path)

    assert response.status_code == 200
    assert response.json() == {"data": {"status": "ok"}}
    assert_common_headers(response)


# --- what is refused ------------------------------------------------------------------------------------------------

LIMIT = 16384


@pytest.mark.parametrize("framing", ["length", "chunked"])
def test_a_refused_body_is_never_taken_for_the_next_request(service: Service, framing: str) -> None:
    smuggled = b"GET /users/smuggled HTTP/1.1\r\nHost: test\r\n\r\n"
    body = smuggled * (2 * LIMIT // len(smuggled))
    head = b"POST /register HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n"
    if framing == "length":
        request = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    else:
        request = head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    last = b"GET /livez HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"

    answers = read_responses(service.talk(request + last))

    # The connection either goes on behind the body or is closed.
    assert [answer.status for answer in answers] in ([413], [413, 200])


@pytest.mark.parametrize("coding", ["br", "zstd", "aes128gcm"])
def test_an_unknown_content_coding_is_refused(client: httpx.Client, coding: str) -> None:
    body = json.dumps(person()).encode()

    response = client.post("/register", content=body, headers=JSON | {"Content-Encoding": coding})

    assert_problem(response, 415, "unsupported-media-type")


def test_an_unknown_expectation_is_passed_over_or_refused_as_a_problem(client: httpx.Client) -> None:
    response = client.get("/livez", headers={"Expect": "the-unexpected"})

    assert_common_headers(response)
    assert response.headers["Content-Type"] == f"application/{'json' if response.is_success else 'problem+json'}"


def test_every_broken_field_is_named_at_once(client: httpx.Client) -> None:
    body = {"email": 7, "password": "short", "age": 131, "admin": True}

    document = assert_problem(client.post("/register", json=body), 422, "validation-failed")

    assert broken(document) == {
        ("email", "wrong-type"),
        ("password", "too-short"),
        ("age", "out-of-range"),
        ("admin", "unknown-field"),
    }


# --- at once --------------------------------------------------------------------------------------------------------


def spellings(name: str) -> list[str]:
    """Fifty ways to write one mailbox."""
    locals_ = (f"zo\u00eb.stra\u00dfe.{name}", f"ZO\u00cb.STRASSE.{name.upper()}", f"Zoe\u0308.Strasse.{name}")
    domains = ("b\u00fccher.example", "B\u00dcCHER.Example", "xn--bcher-kva.EXAMPLE", "bu\u0308cher.example")
    written = [f"{local}@{domain}" for local, domain in itertools.product(locals_, domains)]
    return (written * 5)[:50]


async def test_fifty_at_once_in_different_spellings_make_one_user(service: Service) -> None:
    name = uuid4().hex
    emails = spellings(name)
    assert len({unicodedata.normalize("NFC", email) for email in emails}) > 1
    async with service.async_client() as client:
        answers = await asyncio.gather(*(client.post("/register", json=person(email=email)) for email in emails))

        codes = sorted(answer.status_code for answer in answers)
        assert codes == [201] + [409] * 49
        [winner] = [answer.json()["data"] for answer in answers if answer.status_code == 201]
        for email in set(emails):
            assert (await client.get("/users", params={"email": email})).json()["data"] == [winner]


async def test_a_crowd_registers_while_others_page(start: StartService) -> None:
    service = start()
    async with service.async_client() as client:
        before = [(await client.post("/register", json=person())).json()["data"] for _ in range(20)]

        async def page_through() -> list[str]:
            seen: list[str] = []
            link: str | None = "/users?limit=3&order=asc"
            while link is not None:
                document = (await client.get(link)).json()
                seen += [user["id"] for user in document["data"]]
                link = document["links"]["next"]
            return seen

        crowd = [client.post("/register", json=person()) for _ in range(40)]
        *readings, answers = await asyncio.gather(
            page_through(), page_through(), page_through(), asyncio.gather(*crowd)
        )

        assert all(answer.status_code == 201 for answer in answers)
        everybody = await page_through()
        assert len(everybody) == len(set(everybody)) == 60
        assert everybody[:20] == [user["id"] for user in before]
        for seen in readings:
            assert seen == everybody[: len(seen)]
            assert len(seen) >= 20
