"""The examples of the README and of the pages in docs/, executed; see `tests.soak.terminal`."""

import shutil
from pathlib import Path

import pytest

from tests.e2e.server import Service
from tests.soak.terminal import Example, Terminal, examples_in

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_EXAMPLES = [document for document in DOCUMENTS if [*examples_in(document.read_text("utf-8"))]]

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def assert_examples_work(text: str, folder: Path, service: Service | None = None) -> None:
    examples = [*examples_in(text)]
    assert examples, "there is no example"
    with Terminal(folder, service) as terminal:
        for example in examples:
            terminal.execute(example)


@needs_curl
@pytest.mark.parametrize("document", WITH_EXAMPLES, ids=lambda document: document.name)
def test_the_examples_of_a_document_work(document: Path, tmp_path: Path) -> None:
    assert_examples_work(document.read_text("utf-8"), tmp_path)


def test_the_documents_that_teach_have_examples() -> None:
    assert {"README.md", "tutorial.md", "api.md", "operate.md"} <= {document.name for document in WITH_EXAMPLES}


GOOD = """
```sh
make run
```

```console
$ curl -i http://127.0.0.1:8000/livez \\
    -H 'X-Request-ID: 1'
HTTP/1.1 200 OK
date: Sat, 31 Jan 2026 09:30:00 GMT
content-type: application/json
x-content-type-options: nosniff
cache-control: no-store
content-security-policy: default-src 'none'; frame-ancestors 'none'
x-frame-options: DENY
referrer-policy: no-referrer
cross-origin-resource-policy: same-origin
x-request-id: 1
content-length: 24

{"data":{"status":"ok"}}
$ curl -s http://127.0.0.1:8000/readyz
{"data":{"status":"ok"}}
```
"""


@needs_curl
def test_a_good_example_passes(service: Service, tmp_path: Path) -> None:
    examples = [example for example in examples_in(GOOD) if isinstance(example, Example)]
    assert [output.count("\n") for _, output in examples] == [12, 0]
    assert_examples_work(GOOD, tmp_path, service)


@needs_curl
@pytest.mark.parametrize(
    "text",
    [
        "no example",
        "```sh\n$ curl -s http://127.0.0.1:8000/livez\n```\n",
        GOOD.replace("ok", "fine"),
        GOOD.replace("x-request-id: 1", "x-request-id: 2"),
        GOOD.replace("content-length: 24\n", ""),
        GOOD.replace("/readyz", "/nowhere"),
        "```console\n{}\n$ curl -s http://127.0.0.1:8000/livez\n```\n",
        "```console\n$ curl -s\n```\n",
        "```console\n$ echo\n```\n",
    ],
)
def test_a_bad_example_is_found(service: Service, tmp_path: Path, text: str) -> None:
    with pytest.raises(AssertionError):
        assert_examples_work(text, tmp_path, service)
