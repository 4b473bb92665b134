"""The built documentation: every link resolves, and no page loads from another host."""

import os
import re
import shutil
import subprocess
import sys
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from playwright.sync_api import sync_playwright

from tests.e2e.server import DEADLINE

ROOT = Path(__file__).parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def build(config: Path, site: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--config-file", config, "--site-dir", site],
        cwd=config.parent,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE,
        check=False,
    )


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    built = build(ROOT / "mkdocs.yml", folder)
    assert built.returncode == 0, built.stderr
    return folder


def test_the_site_has_every_page_and_the_code_that_it_shows(site: Path) -> None:
    pages = {page.stem: re.sub(r"<[^>]+>", "", page.read_text("utf-8")) for page in site.glob("*.html")}
    assert set(pages) - {"404"} == {page.stem for page in (ROOT / "docs").glob("*.md")}
    for code in ("class WebhookNotifier", "class Journal:", "class JournalUsers", "class JournalOutbox"):
        assert code in pages["extend"]
    assert "ssl_reject_handshake" in pages["deploy"]
    assert "DynamicUser" in pages["deploy"]
    assert [name for name, text in pages.items() if re.search(r"-8 ?(<|&lt;) ?-", text)] == []
    assert not (site / "examples").exists()


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_sends_no_request_to_another_host_and_reports_no_error(site: Path) -> None:
    requested: list[str] = []
    errors: list[str] = []
    handler = partial(SimpleHTTPRequestHandler, directory=str(site))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, sync_playwright() as playwright:
        Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: requested.append(request.url))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("response", lambda response: errors.append(response.url) if response.status >= 400 else None)
        for path in sorted(site.glob("*.html")):
            page.goto(f"{url}/{path.name}")
            page.wait_for_load_state("networkidle")
        page.goto(f"{url}/index.html")
        # The search runs in a worker.
        page.get_by_placeholder("Search").first.click()
        page.keyboard.type("pepper")
        page.locator(".md-search-result").get_by_text("Cost and pepper").first.wait_for()
        browser.close()
        server.shutdown()
    assert len(requested) > 20
    assert [each for each in requested if not each.startswith((url, "data:", "blob:"))] == []
    assert errors == []


@pytest.mark.parametrize("link", ["[gone](gone.md)", "[gone](index.md#gone)"])
def test_a_broken_link_fails_the_build(tmp_path: Path, link: str) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text(f"# A page\n\n{link}\n")
    (tmp_path / "mkdocs.yml").write_text(f"INHERIT: {ROOT}/mkdocs.yml\nnav: [index.md]\nextra_css: []\n")
    built = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert (built.returncode, "gone" in built.stderr) == (1, True), built.stderr
