"""The built documentation: every link resolves, and no page loads anything from another host."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

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


class Handler(SimpleHTTPRequestHandler):
    """Files of a folder, without a line for each request."""

    def log_message(self, format: str, *_: Any) -> None:  # noqa: A002  # the library's name
        pass


@pytest.fixture
def url(site: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(site))) as server:
        Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_every_page_is_in_the_site(site: Path) -> None:
    pages = {page.stem for page in (ROOT / "docs").glob("*.md")}
    assert pages == {page.stem for page in site.glob("*.html")} - {"404"}
    # What pages show of the examples is in them; the files are not copied.
    assert not (site / "examples").exists()


def test_a_page_shows_the_code_that_is_run(site: Path) -> None:
    words = {page.name: re.sub(r"<[^>]+>", "", page.read_text("utf-8")) for page in site.glob("*.html")}
    for shown in (
        "class WebhookNotifier",
        "class Journal:",
        "class JournalUsers",
        "class JournalOutbox",
        "async def journal(",
    ):
        assert shown in words["extend.html"]
    assert "ssl_reject_handshake" in words["deploy.html"]
    assert "DynamicUser" in words["deploy.html"]
    assert [name for name, text in words.items() if re.search(r"-8 ?(<|&lt;) ?-", text)] == []


def test_no_page_names_an_asset_of_another_host(site: Path) -> None:
    pages = [*site.glob("*.html")]
    assert pages
    for page in pages:
        text = page.read_text("utf-8")
        assets = re.findall(r'<(?:script|img|iframe|source|embed)\b[^>]*\bsrc="?([^" >]+)', text)
        assets += re.findall(r'<link\b[^>]*\bhref="?([^" >]+)', text)
        assert len(assets) > 3
        assert [asset for asset in assets if re.match(r"(\w+:)?//", asset)] == []
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:\w+:)?//|@import", style.read_text("utf-8")), style


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_asks_no_other_host_and_finds_nothing_amiss(site: Path, url: str) -> None:
    asked: list[str] = []
    amiss: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page()
        page.on("request", lambda request: asked.append(request.url))
        page.on("console", lambda message: amiss.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: amiss.append(str(error)))
        page.on("response", lambda answer: amiss.append(answer.url) if answer.status >= 400 else None)
        for path in sorted(site.glob("*.html")):
            page.goto(f"{url}/{path.name}")
            page.wait_for_load_state("networkidle")
        page.goto(f"{url}/index.html")
        # The search works in a worker of its own.
        page.get_by_placeholder("Search").first.click()
        page.keyboard.type("pepper")
        page.locator(".md-search-result").get_by_text("Cost and pepper").first.wait_for()
        browser.close()
    assert len(asked) > 20
    assert [each for each in asked if not each.startswith((url, "data:", "blob:"))] == []
    assert amiss == []


@pytest.mark.parametrize("link", ["[gone](gone.md)", "[gone](index.md#gone)", "[gone](#gone)"])
def test_a_link_that_does_not_resolve_fails_the_build(tmp_path: Path, link: str) -> None:
    docs = tmp_path / "docs"
    docs.mkdir()
    (docs / "index.md").write_text(f"# A page\n\n{link}\n")
    config = (ROOT / "mkdocs.yml").read_text("utf-8")
    bare = re.sub(r"^nav:\n(?:  .*\n)+", "nav: [index.md]\n", config, flags=re.MULTILINE)
    (tmp_path / "mkdocs.yml").write_text(re.sub(r"^extra_css:\n(?:  .*\n)+", "", bare, flags=re.MULTILINE))
    built = build(tmp_path / "mkdocs.yml", tmp_path / "site")
    assert built.returncode != 0
    assert "gone" in built.stderr
