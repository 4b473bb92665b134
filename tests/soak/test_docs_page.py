"""The page at /docs in a real browser: it works, and loads nothing from other hosts."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from tests.e2e.api import assert_common_headers, person
from tests.e2e.server import Service, StartService
from tests.soak.proxy import http_server

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def policy_of(response: httpx.Response) -> dict[str, list[str]]:
    directives = [part.split() for part in response.headers["Content-Security-Policy"].split(";")]
    return {name: sources for name, *sources in directives}


def test_policy_of_the_page_allows_no_foreign_script(client: httpx.Client) -> None:
    response = client.get("/docs", headers={"Accept": "text/html"})

    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/html")
    assert_common_headers(response)
    policy = policy_of(response)
    assert policy["default-src"] == ["'none'"]
    assert policy["script-src"] == ["'self'"]
    assert policy["connect-src"] == ["'self'"]
    assert policy["base-uri"] == policy["form-action"] == policy["frame-ancestors"] == ["'none'"]
    for sources in policy.values():
        assert not {"'unsafe-eval'", "*", "http:", "https:"} & set(sources)
    # Without inline scripts, the policy needs no exception.
    assert "<script>" not in response.text
    assert "http" not in response.text.replace("http-equiv", "")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    try:
        driver = sync_playwright().start()
    except PlaywrightError as error:
        pytest.skip(f"needs a Playwright that starts: {error}")
    try:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM,
            # LocalNetworkAccessChecks would block requests of the page to the other host below.
            args=["--no-sandbox", "--disable-background-networking", "--disable-features=LocalNetworkAccessChecks"],
        )
        yield browser
        browser.close()
    finally:
        driver.stop()


@dataclass
class Visit:
    """A page, its requests, and its warnings and errors."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@pytest.fixture
def visit(browser: Browser) -> Iterator[Visit]:
    with browser.new_page(viewport={"width": 1280, "height": 1600}) as page:
        visit = Visit(page)
        page.on("request", lambda request: visit.requests.append(request.url))
        page.on(
            "console",
            lambda message: visit.complaints.append(message.text) if message.type in {"error", "warning"} else None,
        )
        page.on("pageerror", lambda error: visit.complaints.append(str(error)))
        yield visit


def assert_all_went_to(service: Service, visit: Visit) -> None:
    assert visit.requests
    # data: and blob: make no request.
    assert not [url for url in visit.requests if not url.startswith((f"{service.url}/", "data:", "blob:"))]


@in_a_browser
def test_page_shows_every_operation_and_registers_a_user(service: Service, client: httpx.Client, visit: Visit) -> None:
    sent = person()
    page = visit.page
    page.goto(f"{service.url}/docs")
    document = client.get("/openapi.json").json()
    expect(page.locator(".info .title")).to_contain_text(document["info"]["title"])
    expect(page.locator(".opblock")).to_have_count(sum(len(item) for item in document["paths"].values()))
    operation = page.locator("#operations-users-register")
    operation.locator(".opblock-summary").click()
    operation.get_by_role("button", name="Try it out").click()
    operation.locator("textarea.body-param__text").fill(json.dumps(sent))

    operation.get_by_role("button", name="Execute").click()

    response = operation.locator(".live-responses-table .response")
    expect(response.locator(".response-col_status")).to_have_text("201")
    expect(response.locator(".response-col_description")).to_contain_text(sent["email"])
    assert len(client.get("/users", params={"email": sent["email"]}).json()["data"]) == 1
    assert f"{service.url}/register" in visit.requests
    assert_all_went_to(service, visit)
    assert visit.complaints == []


@in_a_browser
def test_users_are_listed_on_the_page_with_the_token(start: StartService, visit: Visit) -> None:
    token = "a-token-of-the-tests-4711"
    service = start(USERSVC_ADMIN_TOKEN=token)
    page = visit.page
    page.goto(f"{service.url}/docs")
    listing = page.locator("#operations-users-list_users")
    listing.locator(".opblock-summary").click()
    listing.get_by_role("button", name="Try it out").click()
    status = listing.locator(".live-responses-table .response .response-col_status")
    listing.get_by_role("button", name="Execute").click()
    expect(status).to_contain_text("401")
    visit.complaints.clear()

    page.locator(".btn.authorize").click()
    page.locator(".auth-container input").fill(token)
    page.locator(".auth-btn-wrapper button.authorize").click()
    page.locator(".auth-btn-wrapper button.btn-done").click()
    listing.get_by_role("button", name="Execute").click()

    expect(status).to_contain_text("200")
    assert_all_went_to(service, visit)
    assert visit.complaints == []


@in_a_browser
@pytest.mark.parametrize("parameter", ["url", "config", "configUrl"])
def test_no_query_makes_the_page_load_a_foreign_document(service: Service, visit: Visit, parameter: str) -> None:
    hits: list[str] = []

    class Foreign(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hits.append(self.path)
            document = {"openapi": "3.0.3", "info": {"title": "foreign", "version": "1"}, "paths": {}}
            body = json.dumps({"url": f"{foreign}/openapi.json"} if "config" in self.path else document).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()
            self.wfile.write(body)

    with http_server(Foreign) as (host, port):
        foreign = f"http://{host}:{port}"
        httpx.get(f"{foreign}/is-recorded", trust_env=False)
        page = visit.page
        with page.expect_response(f"{service.url}/openapi.json"):
            page.goto(f"{service.url}/docs?{parameter}={foreign}/{parameter}.json")

        expect(page.locator(".info .title")).to_contain_text("usersvc")
        expect(page.locator("#operations-users-register")).to_be_visible()
        page.wait_for_load_state("networkidle")
        assert "foreign" not in page.locator(".info").inner_text()
        assert hits == ["/is-recorded"]
    assert_all_went_to(service, visit)
    assert visit.complaints == []
