"""The admin token, the rate limit, CORS and the headers of every response, on the real service."""

import re
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.api import assert_common_headers, assert_problem, person
from tests.e2e.server import DEADLINE, Service, StartService, running

TOKEN = "a-token-of-the-tests-4711"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


ORIGIN = "https://app.example.com"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a token, which pages of two origins may use."""
    settings = {"USERSVC_ADMIN_TOKEN": TOKEN, "USERSVC_CORS_ORIGINS": f"{ORIGIN},http://localhost:3000"}
    # Wrong tokens are limited for each address.
    settings["USERSVC_TRUSTED_PROXIES"] = "127.0.0.1"
    with running(tmp_path_factory.mktemp("guarded"), settings) as service:
        yield service


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service behind a trusted proxy, with one registration for each client."""
    settings = {"USERSVC_REGISTER_RATE": "1/hour", "USERSVC_TRUSTED_PROXIES": "127.0.0.0/8,192.0.2.1"}
    with running(tmp_path_factory.mktemp("proxied"), settings) as service:
        yield service


def test_users_can_be_read_with_the_token_only(guarded: Service) -> None:
    with guarded.client() as client:
        registered = client.post("/register", json=person())
        assert registered.status_code == 201
        user = registered.headers["Location"]
        unknown = "/users/01936f3c-5e1a-7b3c-9d2e-4f5a6b7c8d9e"
        for number, (authorization, challenge) in enumerate(
            (
                ([], 'Bearer realm="usersvc"'),
                (["Bearer wrong"], 'Bearer realm="usersvc", error="invalid_token"'),
                ([f"Bearer {TOKEN}", "Bearer x"], 'Bearer realm="usersvc", error="invalid_token"'),
            )
        ):
            # From several addresses, as failures are limited.
            headers = [("Authorization", each) for each in authorization] + [("X-Forwarded-For", f"192.0.2.{number}")]
            details = set()
            for target in (user, unknown, "/users", "/users?limit=0", "/users/odd", "/users?nonsense=1"):
                refused = client.get(target, headers=headers)
                details.add(assert_problem(refused, 401, "unauthorized")["detail"])
                # RFC 6750, section 3.1: no error code for a request without any authentication.
                assert refused.headers["WWW-Authenticate"] == challenge
            # The response is the same whether the resource exists or not.
            assert len(details) == 1
        assert client.head("/users").status_code == 401
        for target in ("/users", user):
            assert client.head(target, headers=BEARER).status_code == 200
        assert_problem(client.get(unknown, headers=BEARER), 404, "user-not-found")
        assert_problem(client.get("/users?limit=0", headers=BEARER), 422, "validation-failed")
        for open_to_all in ("/livez", "/readyz", "/openapi.json", "/docs", "/problems/unauthorized"):
            assert client.get(open_to_all).status_code == 200
    assert TOKEN not in guarded.output
    assert "are open" not in guarded.output


def test_document_has_the_security_scheme_only_with_a_token(guarded: Service, client: httpx.Client) -> None:
    with guarded.client() as guarded_client:
        document = guarded_client.get("/openapi.json").json()
    assert document["components"]["securitySchemes"]["bearerAuth"]["scheme"] == "bearer"
    reads = {path: item["get"] for path, item in document["paths"].items() if "get" in item}
    protected = {path for path, operation in reads.items() if "security" in operation}
    assert protected == {"/users", "/users/{user_id}", "/metrics"}
    assert protected == {path for path, operation in reads.items() if "401" in operation["responses"]}
    assert "securitySchemes" not in client.get("/openapi.json").json()["components"]


def test_guesses_of_the_token_are_limited_by_client(start: StartService) -> None:
    guarded = start(USERSVC_ADMIN_TOKEN=TOKEN, USERSVC_TRUSTED_PROXIES="127.0.0.1")

    def status(token: str | None, address: str, target: str = "/users") -> int:
        headers = {"X-Forwarded-For": address} | ({} if token is None else {"Authorization": f"Bearer {token}"})
        return client.get(target, headers=headers).status_code

    with guarded.client() as client:
        targets = ("/users", "/users/odd", "/metrics", "/users?limit=0", "/users")
        assert [status(f"guess {at}", "192.0.2.1", targets[at % 5]) for at in range(12)] == [401] * 10 + [429] * 2
        # The limit holds for the right token, too, as the token is not compared any more.
        assert status(TOKEN, "192.0.2.1") == 429
        assert status(TOKEN, "192.0.2.1", "/metrics") == 429
        # A request without a token is not a guess, and public resources stay open.
        assert status(None, "192.0.2.1") == 401
        assert status("guess", "192.0.2.1", "/livez") == 200
        # Other clients are not affected, and right tokens and missing ones not counted.
        assert [status(token, "192.0.2.2") for token in (TOKEN, None) * 11] == [200, 401] * 11

        guess = {"Authorization": "Bearer guess", "X-Forwarded-For": "192.0.2.1"}
        refused = client.get("/users", headers=guess)
        assert_problem(refused, 429, "rate-limited")
        assert refused.headers["RateLimit-Policy"] == '"admin-token";q=10;w=60'


def test_registrations_of_a_client_are_limited(start: StartService) -> None:
    service = start(USERSVC_REGISTER_RATE="3/hour")
    with service.client() as client:
        taken = person()
        responses = [client.post("/register", json=taken), client.post("/register", json=taken)]
        responses += [client.post("/register", content=b"x" * 100_000), client.post("/register", json=person())]
        assert [response.status_code for response in responses] == [201, 409, 415, 429]
        assert [response.headers["RateLimit-Policy"] for response in responses] == ['"register";q=3;w=3600'] * 4
        left = [re.fullmatch(r'"register";r=(\d);t=3[56]\d\d', response.headers["RateLimit"]) for response in responses]
        assert [match and match[1] for match in left] == ["2", "1", "0", "0"]
        assert_problem(responses[-1], 429, "rate-limited")
        assert 3500 < int(responses[-1].headers["Retry-After"]) <= 3600
        # X-Forwarded-For is ignored without a trusted proxy.
        forged = {"X-Forwarded-For": "198.51.100.7"}
        assert client.post("/register", json=person(), headers=forged).status_code == 429
        # Reading is not limited.
        assert client.get("/users").status_code == 200
        assert "RateLimit" not in client.get("/users").headers


def test_limited_request_is_refused_before_its_body_arrives(proxied: Service) -> None:
    with proxied.client() as client:
        client.post("/register", json=person())
    with socket.create_connection(proxied.address, DEADLINE) as connection:
        connection.sendall(b"POST /register HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n")
        connection.sendall(b"Content-Length: 100\r\n\r\n")
        assert connection.recv(65536).startswith(b"HTTP/1.1 429 ")


def test_a_trusted_proxy_speaks_for_its_clients(proxied: Service) -> None:
    with proxied.client() as client:

        def status(forwarded_for: str) -> int:
            return client.post("/register", json=person(), headers={"X-Forwarded-For": forwarded_for}).status_code

        assert [status("198.51.100.7"), status("198.51.100.7"), status("198.51.100.8")] == [201, 429, 201]
        assert status("203.0.113.1, 198.51.100.8, 192.0.2.1") == 429
        assert [status("2001:db8:0:1::1"), status("2001:db8:0:1::2"), status("2001:db8:0:2::1")] == [201, 429, 201]


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
def test_rate_limit_holds_over_ipv6(start: StartService) -> None:
    with start(USERSVC_HOST="::1", USERSVC_REGISTER_RATE="1/hour").client() as client:
        assert [client.post("/register", json=person()).status_code for _ in range(2)] == [201, 429]


def preflight(client: httpx.Client, path: str, origin: str, method: str, headers: str = "") -> httpx.Response:
    wanted = {"Origin": origin, "Access-Control-Request-Method": method}
    return client.options(path, headers=wanted | ({"Access-Control-Request-Headers": headers} if headers else {}))


def test_pages_of_other_origins_are_not_allowed_by_default(client: httpx.Client) -> None:
    response = client.get("/users", headers={"Origin": ORIGIN})
    assert not [name for name in response.headers if name.startswith("access-control-")]
    assert_problem(preflight(client, "/register", ORIGIN, "POST"), 405, "method-not-allowed")


def test_pages_of_a_configured_origin_are_allowed(guarded: Service) -> None:
    with guarded.client() as client:
        allowed = preflight(client, "/register", ORIGIN, "POST", "content-type, idempotency-key, x-request-id")
        assert allowed.status_code == 200
        assert allowed.headers["Access-Control-Allow-Origin"] == ORIGIN
        assert allowed.headers["Access-Control-Allow-Methods"] == "POST"
        assert "Access-Control-Allow-Credentials" not in allowed.headers
        assert preflight(client, "/users", ORIGIN, "GET", "authorization").status_code == 200

        for refused in (
            *(
                preflight(client, "/register", other, "POST")
                for other in ("https://evil.example", f"{ORIGIN}:444", "null")
            ),
            preflight(client, "/register", ORIGIN, "DELETE"),
            preflight(client, "/register", ORIGIN, "POST", "x-odd"),
            client.options("/register"),
        ):
            assert_problem(refused, 405, "method-not-allowed")
            assert refused.headers["Allow"] == "POST"
            assert_common_headers(refused)

        from_page = {"Origin": ORIGIN}
        responses = [
            client.post("/register", json=person(), headers=from_page),
            client.post("/register", content=b"{", headers=from_page | {"Content-Type": "application/json"}),
            client.get("/users", headers=from_page),
            client.get("/users", headers=from_page | BEARER),
            client.get("/livez", headers=from_page),
            client.get("/openapi.json", headers=from_page),
        ]
        assert [response.status_code for response in responses] == [201, 400, 401, 200, 200, 200]
        for response in responses:
            assert response.headers["Access-Control-Allow-Origin"] == ORIGIN
            assert "Location" in response.headers["Access-Control-Expose-Headers"]
            assert response.headers["Vary"] == "Origin"
            assert_common_headers(response)
        foreign = client.get("/livez", headers={"Origin": "https://evil.example"})
        assert "Access-Control-Allow-Origin" not in foreign.headers
        assert foreign.headers["Vary"] == "Origin"
        assert client.get("/docs").status_code == 200


def test_every_response_has_the_security_headers(client: httpx.Client) -> None:
    expected = {
        "X-Content-Type-Options": "nosniff",
        "X-Frame-Options": "DENY",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
    }
    for path in ("/users", "/nowhere", "/livez", "/docs", "/docs/static/swagger-ui.css", "/register"):
        headers = client.get(path).headers
        assert {name: headers[name] for name in expected} == expected
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        # Without TLS a browser ignores it (RFC 6797, section 8.1).
        assert "Strict-Transport-Security" not in headers
        assert "Server" not in headers
    assert client.get("/docs/static/swagger-ui.css").headers["Content-Type"] == "text/css; charset=utf-8"
