"""Executes the examples of the README and of the pages in docs/."""

import shutil
from contextlib import nullcontext
from pathlib import Path

import pytest

from tests.e2e.server import Service
from tests.soak.terminal import Terminal, examples_in

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
WITH_EXAMPLES = [document for document in DOCUMENTS if [*examples_in(document.read_text("utf-8"))]]

pytestmark = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


def execute_examples(text: str, folder: Path, service: Service | None = None) -> None:
    with Terminal(folder, service) as terminal:
        for example in examples_in(text):
            terminal.execute(example)


@pytest.mark.parametrize("document", WITH_EXAMPLES, ids=lambda document: document.name)
def test_the_examples_of_a_document_work(document: Path, tmp_path: Path) -> None:
    execute_examples(document.read_text("utf-8"), tmp_path)


def test_the_documents_that_teach_have_examples() -> None:
    assert {"README.md", "tutorial.md", "api.md", "operate.md"} <= {document.name for document in WITH_EXAMPLES}


GOOD = """
```console
$ curl -s -D - -o /dev/null -w '%{http_code}\\n' http://127.0.0.1:8000/livez \\
    -H 'X-Request-ID: 1' | grep request-id
x-request-id: 1
$ curl -s http://127.0.0.1:8000/readyz
{"data":{"status":"ok"}}
```
"""


@pytest.mark.parametrize(
    ("text", "works"),
    [
        (GOOD, True),
        (GOOD.replace("ok", "fine"), False),
        (GOOD.replace("x-request-id: 1\n", ""), False),
        (GOOD.replace("/readyz", "/nowhere"), False),
        ("```console\n$ rm README.md\n```\n", False),
    ],
)
def test_an_example_works_only_as_shown(service: Service, tmp_path: Path, text: str, works: bool) -> None:
    with nullcontext() if works else pytest.raises(AssertionError):
        execute_examples(text, tmp_path, service)
