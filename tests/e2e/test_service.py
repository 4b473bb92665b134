"""The HTTP contract, from outside: a real process, a real SQLite file, real sockets."""

import asyncio
import gzip
import itertools
import json
import re
import time
import unicodedata
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from tests.e2e.api import (
    RawResponse,
    assert_common_headers,
    assert_problem,
    assert_user,
    broken,
    pages_from,
    person,
    read_responses,
    register,
    users_from,
)
from tests.e2e.server import Service, StartService
from usersvc.application.registration import CHECK_INTERVAL

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

    response = client.post("/register", json=sent)

    assert response.status_code == 201
    assert response.headers["Content-Type"] == "application/json"
    assert_common_headers(response)
    assert set(response.json()) == {"data"}
    user = response.json()["data"]
    assert_user(user, sent)
    assert response.headers["Location"] == f"/users/{user['id']}"
    found = client.get(response.headers["Location"])
    assert found.status_code == 200
    assert found.headers["Content-Type"] == "application/json"
    assert found.json() == {"data": user}


def test_the_email_is_shown_as_it_was_typed(client: httpx.Client) -> None:
    name = uuid4().hex
    typed = f"Zoe\u0308.{name}@B\u00fccher.Example"

    user = register(client, email=typed)

    assert user["email"] == typed
    assert client.get(f"/users/{user['id']}").json()["data"]["email"] == typed
    [listed] = client.get("/users", params={"email": f"zo\u00eb.{name}@xn--bcher-kva.example"}).json()["data"]
    assert listed == user


def test_a_listing_leads_from_page_to_page_in_both_orders(start: StartService) -> None:
    with start().client() as client:
        assert client.get("/users").json() == {
            "data": [],
            "links": {"self": "/users?limit=50&order=asc", "next": None},
        }
        users = [register(client) for _ in range(7)]

        oldest_first = pages_from(client, "/users?limit=3&order=asc")
        newest_first = pages_from(client, "/users?limit=3&order=desc")

        assert [len(page) for page in oldest_first] == [3, 3, 1]
        assert [user for page in oldest_first for user in page] == users
        assert [len(page) for page in newest_first] == [3, 3, 1]
        assert [user for page in newest_first for user in page] == users[::-1]
        # A last page that is full has no empty page behind it.
        assert [len(page) for page in pages_from(client, "/users?limit=7&order=asc")] == [7]
        assert pages_from(client, "/users?limit=50&order=asc") == [users]
        assert client.get("/users", params={"email": users[4]["email"].upper()}).json()["data"] == [users[4]]
        assert client.get("/users", params={"email": "nobody@example.com"}).json()["data"] == []


def test_whoever_registers_while_someone_pages_makes_nobody_come_twice_or_be_skipped(start: StartService) -> None:
    with start().client() as client:
        before = [register(client) for _ in range(4)]
        first_oldest, first_newest = (
            client.get("/users", params={"limit": 2, "order": order}).json() for order in ("asc", "desc")
        )

        after = [register(client) for _ in range(3)]

        assert first_oldest["data"] + users_from(client, first_oldest["links"]["next"]) == before + after
        assert first_newest["data"] + users_from(client, first_newest["links"]["next"]) == before[::-1]


def get_paths(client: httpx.Client) -> Iterator[str]:
    user = register(client)
    for path, operations in client.get("/openapi.json").json()["paths"].items():
        if "get" in operations:
            yield path.format(user_id=user["id"], code="email-taken")
    yield "/docs"
    yield "/docs/static/init.js"
    yield "/docs/static/swagger-ui.css"
    yield "/docs/static/swagger-ui-bundle.js"
    yield "/nowhere"
    yield f"/users/{NOBODY}"
    yield "/users?limit=0"


def test_head_is_get_without_the_body(service: Service, client: httpx.Client) -> None:
    paths = [*get_paths(client)]
    assert {"/users", "/livez", "/readyz", "/openapi.json", "/problems/email-taken"} < set(paths)
    for path in paths:
        request = f" {path} HTTP/1.1\r\nHost: test\r\nX-Request-ID: same\r\nConnection: close\r\n\r\n".encode()
        head, get = (RawResponse.read(service.talk(method + request)) for method in (b"HEAD", b"GET"))

        assert head.status == get.status, path
        # Figures grow with each request.
        varies = {"date": ""} | ({"content-length": ""} if path == "/metrics" else {})
        assert head.headers | varies == get.headers | varies, path
        assert head.rest == b"", path
        assert len(get.rest) == int(get.headers["content-length"]) > 0, path


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


# --- request ids ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", ["42", "req-1.2_3~4", str(NOBODY), "a/b=c:d@e", "x" * 128])
def test_a_sane_request_id_comes_back(client: httpx.Client, wanted: str) -> None:
    response = client.get("/nowhere", headers={"X-Request-ID": wanted})

    assert response.headers["X-Request-ID"] == wanted
    assert_problem(response, 404, "not-found")


@pytest.mark.parametrize("odd", ["", "two words", "x" * 129, "<script>", '"', "ünlich".encode(), b"\xff\xfe", "a\tb"])
def test_an_odd_request_id_is_replaced(client: httpx.Client, odd: str | bytes) -> None:
    name = b"X-Request-ID"
    response = client.get("/nowhere", headers=[(name, odd.encode() if isinstance(odd, str) else odd)])

    assert UUID(response.headers["X-Request-ID"])
    assert_problem(response, 404, "not-found")


def test_requests_without_an_id_get_one_each(client: httpx.Client) -> None:
    ids = {client.get("/livez").headers["X-Request-ID"] for _ in range(5)}

    assert len({UUID(request_id) for request_id in ids}) == 5


# --- what is refused ------------------------------------------------------------------------------------------------

TWICE = json.dumps(person())[:-1]

MALFORMED = {
    "empty": b"",
    "blank": b" \r\n",
    "cut short": b'{"email": "a@example.com", ',
    "trailing comma": b'{"email": "a@example.com",}',
    "single quotes": b"{'email': 'a@example.com'}",
    "two texts": b"{} {}",
    "trailing garbage": b"{}garbage",
    "comment": b"{} // comment",
    "leading zero": b'{"age": 030}',
    "number without digits": b'{"age": -}',
    "line break in a string": b'{"email": "a\nb"}',
    "bad escape": b'{"email": "\\x41"}',
    "form": b"email=a%40example.com&age=30",
    "not UTF-8": b'{"email": "\xff@example.com"}',
    "UTF-8 of a surrogate": b'{"email": "\xed\xa0\x80@example.com"}',
    "overlong UTF-8": b'{"email": "\xc0\xaf@example.com"}',
    "UTF-16": json.dumps(person()).encode("utf-16"),
    "UTF-32": json.dumps(person()).encode("utf-32-be"),
    "byte order mark": b"\xef\xbb\xbf" + json.dumps(person()).encode(),
    "member twice": f'{TWICE}, "age": 31}}'.encode(),
    "member twice in disguise": f'{TWICE}, "\\u0061ge": 30}}'.encode(),
    "member twice inside": b'{"x": {"y": 1, "y": 1}}',
    "NaN": b'{"age": NaN}',
    "Infinity": b'{"age": Infinity}',
    "-Infinity": b'{"age": -Infinity}',
    "too deep": b"[" * 100 + b"]" * 100,
    "far too deep": b'{"a":' * 2000 + b"1" + b"}" * 2000,
    "deep and open": b"[" * 16000,
}


@pytest.mark.parametrize("body", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_json_is_refused(client: httpx.Client, body: bytes) -> None:
    response = client.post("/register", content=body, headers=JSON)

    assert_problem(response, 400, "malformed-json")


@pytest.mark.parametrize("path", ["/nowhere", "/register/", "/users/", "/users//", "/USERS", "/problems/nonsense"])
def test_an_unknown_path_is_told_as_a_problem(client: httpx.Client, path: str) -> None:
    assert_problem(client.get(path), 404, "not-found")


@pytest.mark.parametrize("user_id", [str(NOBODY), "0", "nobody", "%00", "1e3", "null"])
def test_an_unknown_user_is_told_as_a_problem(client: httpx.Client, user_id: str) -> None:
    assert_problem(client.get(f"/users/{user_id}"), 404, "user-not-found")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("GET", "/register", {"POST"}),
        ("HEAD", "/register", {"POST"}),
        ("PUT", "/register", {"POST"}),
        ("POST", "/users", {"GET", "HEAD"}),
        ("DELETE", f"/users/{NOBODY}", {"GET", "HEAD"}),
        ("PATCH", "/openapi.json", {"GET", "HEAD"}),
        ("OPTIONS", "/docs", {"GET", "HEAD"}),
        ("PROPFIND", "/livez", {"GET", "HEAD"}),
    ],
)
def test_a_wrong_method_learns_the_right_ones(client: httpx.Client, method: str, path: str, allowed: set[str]) -> None:
    response = client.request(method, path)

    assert {name.strip() for name in response.headers["Allow"].split(",")} == allowed
    if method == "HEAD":
        assert response.status_code == 405
        assert response.content == b""
    else:
        assert_problem(response, 405, "method-not-allowed")


@pytest.mark.parametrize("accept", ["text/html", "application/xml, text/*", "application/json;q=0", "image/*;q=1"])
def test_what_a_client_cannot_read_is_not_sent(client: httpx.Client, accept: str) -> None:
    assert_problem(client.get("/users", headers={"Accept": accept}), 406, "not-acceptable")


def test_a_registration_whose_answer_nobody_could_read_does_not_happen(client: httpx.Client) -> None:
    sent = person()

    assert_problem(client.post("/register", json=sent, headers={"Accept": "text/html"}), 406, "not-acceptable")

    assert client.post("/register", json=sent).status_code == 201


@pytest.mark.parametrize("accept", ["*/*", "application/*", "text/html, application/json;q=0.1", "APPLICATION/JSON"])
def test_a_client_that_reads_json_among_others_gets_it(client: httpx.Client, accept: str) -> None:
    response = client.get("/livez", headers={"Accept": accept})

    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"


def test_a_taken_mailbox_is_told_as_a_problem(client: httpx.Client) -> None:
    sent = person()
    assert client.post("/register", json=sent).status_code == 201

    for again in (sent, sent | {"email": sent["email"].upper(), "age": 99}):
        document = assert_problem(client.post("/register", json=again), 409, "email-taken")
        assert again["email"] not in json.dumps(document)


LIMIT = 16384


def test_a_body_as_large_as_allowed_is_read(client: httpx.Client) -> None:
    body = json.dumps(person()).encode()

    assert client.post("/register", content=body.ljust(LIMIT), headers=JSON).status_code == 201


def test_a_body_that_announces_itself_as_too_large_is_refused_unread(service: Service) -> None:
    head = b"POST /register HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\nConnection: close\r\n"

    answer = RawResponse.read(service.talk(head + b"Content-Length: 1000000000\r\n\r\n"))

    assert answer.status == 413
    assert json.loads(answer.rest)["code"] == "body-too-large"


def test_a_chunked_body_is_refused_as_soon_as_it_is_too_large(client: httpx.Client) -> None:
    body = json.dumps(person()).encode().ljust(LIMIT + 1)

    response = client.post("/register", content=iter([body[:100], body[100:]]), headers=JSON)

    assert_problem(response, 413, "body-too-large")


def test_a_small_body_that_unpacks_to_a_large_one_is_refused(client: httpx.Client) -> None:
    body = gzip.compress(json.dumps(person()).encode().ljust(10_000_000))
    assert len(body) < LIMIT

    response = client.post("/register", content=body, headers=JSON | {"Content-Encoding": "gzip"})

    assert response.status_code in {413, 415}
    assert_problem(response, response.status_code, response.json()["code"])


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


@pytest.mark.parametrize(
    "content_type",
    [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "application/xml",
     "application/json-patch+json", "application/json; charset=latin-1", "application/json; charset=utf-16", "json"],
)  # fmt: skip
def test_another_media_type_is_refused(client: httpx.Client, content_type: str | None) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}

    response = client.post("/register", content=json.dumps(person()).encode(), headers=headers)

    assert_problem(response, 415, "unsupported-media-type")


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "APPLICATION/JSON;charset=UTF-8"])
def test_json_in_utf_8_may_say_so(client: httpx.Client, content_type: str) -> None:
    body = json.dumps(person()).encode()

    assert client.post("/register", content=body, headers={"Content-Type": content_type}).status_code == 201


@pytest.mark.parametrize("coding", ["br", "zstd", "aes128gcm"])
def test_an_unknown_content_coding_is_refused(client: httpx.Client, coding: str) -> None:
    body = json.dumps(person()).encode()

    response = client.post("/register", content=body, headers=JSON | {"Content-Encoding": coding})

    assert_problem(response, 415, "unsupported-media-type")


def test_an_unknown_expectation_is_passed_over_or_refused_as_a_problem(client: httpx.Client) -> None:
    response = client.get("/livez", headers={"Expect": "the-unexpected"})

    assert_common_headers(response)
    assert response.headers["Content-Type"] == f"application/{'json' if response.is_success else 'problem+json'}"


INVALID: dict[str, tuple[object, set[tuple[str, str]]]] = {
    "no members": ({}, {("email", "required"), ("password", "required"), ("age", "required")}),
    "nulls": (
        {"email": None, "password": None, "age": None},
        {("email", "wrong-type"), ("password", "wrong-type"), ("age", "wrong-type")},
    ),
    "every rule": (
        {"email": "nobody", "password": "short", "age": 17},
        {("email", "invalid-email"), ("password", "too-short"), ("age", "out-of-range")},
    ),
    "rules and shape": (
        {"email": 7, "password": "short", "age": 131, "admin": True},
        {("email", "wrong-type"), ("password", "too-short"), ("age", "out-of-range"), ("admin", "unknown-field")},
    ),
    "shape of one, rules of others": (
        {"email": "nobody@", "password": "nobody@", "age": "30"},
        {("email", "invalid-email"), ("password", "too-short"), ("password", "same-as-email"), ("age", "wrong-type")},
    ),
    "a boolean for a number": (person(age=True), {("age", "wrong-type")}),
    "text for a number": (person(age="30"), {("age", "wrong-type")}),
    "a fraction": (person(age=30.5), {("age", "wrong-type")}),
    "whole but written as a fraction": (person(age=30.0), {("age", "wrong-type")}),
    "a negative age": (person(age=-1), {("age", "out-of-range")}),
    "an age of many digits": (person(age=10**900), {("age", "out-of-range")}),
    "a common password": (person(password="Password123"), {("password", "common-password")}),
    "the email for a password": (
        {"email": "alice.l@example.com", "password": "ALICE.L@example.com", "age": 30},
        {("password", "same-as-email")},
    ),
    "a long password": (person(password="\u00e9" * 257), {("password", "too-long")}),
    "a long email": (person(email=f"{'a' * 250}@example.com"), {("email", "too-long")}),
    "half of a surrogate pair": (
        {"email": "\ud800@example.com", "password": "\udfff" * 8, "age": 30},
        {("email", "invalid-email"), ("password", "invalid-character")},
    ),
    "an odd name": (person() | {"\ud800\u0000": 1}, {("\\ud800\u0000", "unknown-field")}),
    "a list": ([person()], {("body", "wrong-type")}),
    "a text": ("email", {("body", "wrong-type")}),
    "a number": (1, {("body", "wrong-type")}),
    "null": (None, {("body", "wrong-type")}),
}


@pytest.mark.parametrize(("body", "expected"), INVALID.values(), ids=INVALID.keys())
def test_every_broken_field_is_named_at_once(
    client: httpx.Client, body: object, expected: set[tuple[str, str]]
) -> None:
    # By json.dumps, which writes halves of surrogate pairs as escapes.
    response = client.post("/register", content=json.dumps(body).encode(), headers=JSON)

    assert broken(assert_problem(response, 422, "validation-failed")) == expected


@pytest.mark.parametrize("age", ["1e400", "3e1", "30.0", "-0", "9" * 5000])
def test_an_age_that_is_no_plain_integer_in_range_is_refused(client: httpx.Client, age: str) -> None:
    body = json.dumps(person(age="AGE")).replace('"AGE"', age).encode()

    document = assert_problem(client.post("/register", content=body, headers=JSON), 422, "validation-failed")

    assert {field for field, _ in broken(document)} == {"age"}


@pytest.mark.parametrize(
    "password", ["\u00e9" * 256, "p" * 256, "\0" * 8, "\U0001f511" * 8, "x" * 73, " " * 7 + "\u3000"]
)
def test_any_characters_make_a_password(client: httpx.Client, password: str) -> None:
    register(client, password=password)


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("limit=0", {("limit", "out-of-range")}),
        ("limit=201", {("limit", "out-of-range")}),
        ("limit=", {("limit", "out-of-range")}),
        ("limit=1_0", {("limit", "out-of-range")}),
        ("limit=%D9%A3", {("limit", "out-of-range")}),
        ("limit=1&limit=2", {("limit", "repeated")}),
        ("order=up", {("order", "not-a-choice")}),
        ("order=DESC", {("order", "not-a-choice")}),
        ("cursor=nonsense", {("cursor", "invalid-cursor")}),
        ("cursor=", {("cursor", "invalid-cursor")}),
        ("cursor=%00%ff", {("cursor", "invalid-cursor")}),
        ("email=nobody", {("email", "invalid-email")}),
        ("offset=10", {("offset", "unknown-field")}),
        (
            "limit=x&order=y&cursor=z&email=e&page=2",
            {
                ("limit", "out-of-range"),
                ("order", "not-a-choice"),
                ("cursor", "invalid-cursor"),
                ("email", "invalid-email"),
                ("page", "unknown-field"),
            },
        ),
    ],
)
def test_a_bad_query_is_refused(client: httpx.Client, query: str, expected: set[tuple[str, str]]) -> None:
    document = assert_problem(client.get(f"/users?{query}"), 422, "validation-failed")

    assert broken(document) == expected


def test_a_cursor_belongs_to_its_order(client: httpx.Client) -> None:
    for _ in range(2):
        register(client)
    following = client.get("/users?limit=1&order=asc").json()["links"]["next"]

    document = assert_problem(client.get(following.replace("asc", "desc")), 422, "validation-failed")

    assert broken(document) == {("cursor", "invalid-cursor")}


def test_every_code_that_the_document_names_is_explained(client: httpx.Client) -> None:
    text = client.get("/openapi.json").text
    codes = {type_.split('"')[0] for type_ in text.split('"/problems/')[1:] if "{" not in type_.split('"')[0]}
    assert {"email-taken", "validation-failed", "internal-error"} < codes
    for code in codes:
        response = client.get(f"/problems/{code}")
        assert response.status_code == 200
        kind = response.json()["data"]
        assert set(kind) == {"code", "status", "title", "description"}
        assert kind["code"] == code


# --- secrets --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("log_format", ["console", "json"])
def test_a_password_is_never_shown_written_or_stored(start: StartService, log_format: str) -> None:
    secret = f"Geheimnis-{uuid4()}"
    service = start(USERSVC_LOG_LEVEL="debug", USERSVC_LOG_FORMAT=log_format)
    answers: list[httpx.Response] = []
    sent = person(password=secret)
    with service.client() as client:
        for request in (
            {"json": sent},
            {"json": sent},
            {"json": sent | {"email": secret}},
            {"json": sent | {"password": secret * 10}},
            {"json": sent | {"age": secret}},
            {"json": {"password": [secret], "email": {"x": secret}}},
            {"json": secret},
            {"content": json.dumps(sent).encode() + b"}", "headers": JSON},
            {"content": json.dumps(sent).replace(": 30", ": NaN").encode(), "headers": JSON},
            {"content": json.dumps(sent).encode()},
            {"content": json.dumps(sent).encode().ljust(LIMIT + 1), "headers": JSON},
            {"json": sent, "headers": {"Accept": "text/html"}},
            {"json": sent, "params": {"password": secret}},
        ):
            arguments: dict[str, Any] = request
            answers.append(client.post("/register", **arguments))
        answers.append(client.put("/register", json=sent))
        answers.append(client.get("/users", params={"email": secret, "cursor": secret, "limit": secret}))
        answers.append(client.get(f"/{secret}"))
        answers.append(client.get(f"/users/{secret}"))
        answers.append(client.get(f"/problems/{secret}"))
        answers.append(client.get("/users"))
        assert {answer.status_code for answer in answers} >= {200, 201, 400, 404, 405, 406, 409, 413, 415, 422}
        # While it runs the newest pages are in the write-ahead log.
        stored = b"".join(file.read_bytes() for file in service.folder.iterdir())
    service.stop()

    stored += b"".join(file.read_bytes() for file in service.folder.iterdir())
    assert sent["email"].encode() in stored
    assert sent["email"] in service.output
    for told in (service.output, stored.decode("latin-1"), *(f"{answer.headers}{answer.text}" for answer in answers)):
        assert secret.lower() not in told.lower()
    # Nor what is left of it, which would let an attacker try passwords.
    for told in (service.output, *(answer.text for answer in answers)):
        assert "$2b$" not in told


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
