"""The page at /docs in a real browser: it works, and it loads nothing from anywhere else."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import httpx
import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright
from playwright.sync_api import Error as PlaywrightError

from tests.e2e.api import assert_common_headers, person
from tests.e2e.server import Service, StartService

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

in_a_browser = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")


def policy_of(response: httpx.Response) -> dict[str, list[str]]:
    directives = [part.split() for part in response.headers["Content-Security-Policy"].split(";")]
    return {name: sources for name, *sources in directives}


def test_the_policy_of_the_page_lets_no_foreign_script_run(client: httpx.Client) -> None:
    response = client.get("/docs")

    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/html")
    assert_common_headers(response)
    policy = policy_of(response)
    assert policy["default-src"] == ["'none'"]
    assert policy["script-src"] == ["'self'"]
    assert policy["connect-src"] == ["'self'"]
    for directive in ("base-uri", "form-action", "frame-ancestors"):
        assert policy[directive] == ["'none'"]
    for sources in policy.values():
        assert not {"'unsafe-eval'", "*", "http:", "https:"} & set(sources)
    # A browser that gets no script inside the page needs no exception for one.
    assert "<script>" not in response.text
    assert "http" not in response.text.replace("http-equiv", "")


@dataclass
class Elsewhere:
    """A host that is not ours, with an API document that everybody may load; it remembers who came."""

    url: str
    hits: list[str] = field(default_factory=list)

    TITLE = "Somebody else's API"


@contextmanager
def elsewhere() -> Iterator[Elsewhere]:
    document = {"openapi": "3.0.3", "info": {"title": Elsewhere.TITLE, "version": "1"}, "paths": {}}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            there.hits.append(self.path)
            body = json.dumps({"url": f"{there.url}/openapi.json"} if "config" in self.path else document).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Access-Control-Allow-Origin", "*")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        there = Elsewhere(f"http://127.0.0.1:{server.server_port}")
        thread = Thread(target=server.serve_forever)
        thread.start()
        try:
            yield there
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    try:
        driver = sync_playwright().start()
    except PlaywrightError as error:
        pytest.skip(f"needs a Playwright that starts: {error}")
    try:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--no-first-run",
                # It would keep the page from the other host below, which is for the page itself to do.
                "--disable-features=LocalNetworkAccessChecks",
            ],
        )
        yield browser
        browser.close()
    finally:
        driver.stop()


@dataclass
class Visit:
    """A page, the requests it made and what it complained of."""

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
    # What is inside the page or made by it is no request to anybody.
    assert not [url for url in visit.requests if not url.startswith((f"{service.url}/", "data:", "blob:"))]


@in_a_browser
def test_somebody_registers_on_the_page(service: Service, client: httpx.Client, visit: Visit) -> None:
    sent = person()
    page = visit.page
    page.goto(f"{service.url}/docs")
    operation = page.locator("#operations-users-register")
    operation.locator(".opblock-summary").click()
    operation.get_by_role("button", name="Try it out").click()
    operation.locator("textarea.body-param__text").fill(json.dumps(sent))

    operation.get_by_role("button", name="Execute").click()

    answer = operation.locator(".live-responses-table .response")
    expect(answer.locator(".response-col_status")).to_have_text("201")
    expect(answer.locator(".response-col_description")).to_contain_text(sent["email"])
    assert [user["email"] for user in client.get("/users", params={"email": sent["email"]}).json()["data"]] == [
        sent["email"]
    ]
    assert f"{service.url}/register" in visit.requests
    assert_all_went_to(service, visit)
    assert visit.complaints == []


@in_a_browser
def test_whoever_has_the_token_lists_users_on_the_page(start: StartService, visit: Visit) -> None:
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
def test_the_page_shows_every_operation(service: Service, client: httpx.Client, visit: Visit) -> None:
    document = client.get("/openapi.json").json()
    page = visit.page

    page.goto(f"{service.url}/docs")

    expect(page.locator(".info .title")).to_contain_text(document["info"]["title"])
    expect(page.locator(".opblock")).to_have_count(sum(len(item) for item in document["paths"].values()))
    listing = page.locator("#operations-users-list_users")
    listing.locator(".opblock-summary").click()
    expect(listing.locator(".parameters")).to_contain_text("cursor")
    assert_all_went_to(service, visit)
    assert visit.complaints == []


@in_a_browser
@pytest.mark.parametrize("parameter", ["url", "config", "configUrl"])
def test_no_address_makes_the_page_load_a_foreign_document(service: Service, visit: Visit, parameter: str) -> None:
    with elsewhere() as there:
        httpx.get(f"{there.url}/is-recorded", trust_env=False)
        page = visit.page
        with page.expect_response(f"{service.url}/openapi.json"):
            page.goto(f"{service.url}/docs?{parameter}={there.url}/{parameter}.json")

        expect(page.locator(".info .title")).to_contain_text("usersvc")
        expect(page.locator("#operations-users-register")).to_be_visible()
        page.wait_for_load_state("networkidle")
        assert Elsewhere.TITLE not in page.content()
        assert there.hits == ["/is-recorded"]
    assert_all_went_to(service, visit)
    assert visit.complaints == []
