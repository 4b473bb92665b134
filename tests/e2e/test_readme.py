"""The examples of the README, executed: what it shows is what happens.

An example is a fenced block marked ``console``. A line that begins with ``$ curl`` is a command, continued over lines
that end in a backslash; what follows, up to the next command or the end of the block, is its output. The service of
the README listens on http://127.0.0.1:8000 and begins without users; the examples are executed from top to bottom, so
a later one may rely on an earlier one. What differs each time (ids, times, cursors) only has to look alike.
"""

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.e2e.server import DEADLINE, Service, StartService

README = Path(__file__).parents[2] / "README.md"
ADDRESS = "http://127.0.0.1:8000"

needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl on PATH")

_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_VOLATILE = (
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[47][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\b"), "<id>"),
    (re.compile(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"), "<time>"),
    (re.compile(r"\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d GMT\b"), "<date>"),
    (re.compile(r'(?<="register";)r=\d+;t=\d+'), "<left>"),
    (re.compile(r"(?<=[?&]cursor=)[\w-]+"), "<cursor>"),
)


class Example(NamedTuple):
    command: str
    output: str


def examples_in(text: str) -> Iterator[Example]:
    for block in _BLOCK.findall(text):
        beginning, *parts = re.split(r"^\$ ", block, flags=re.MULTILINE)
        assert not beginning, f"a console block has to begin with a command: {block}"
        for part in parts:
            command, _, output = part.replace("\\\n", "").partition("\n")
            yield Example(command, output.rstrip())


def alike(text: str) -> str:
    """The text with what differs each time masked."""
    for pattern, mask in _VOLATILE:
        text = pattern.sub(mask, text)
    return text


def output_of(command: str, service: Service) -> str:
    program, *arguments = shlex.split(command.replace(ADDRESS, service.url))
    assert program == "curl", f"only curl is executed here, not: {command}"
    ended = subprocess.run(
        # Without the settings of whoever runs the tests.
        [program, "--disable", *arguments],
        env=os.environ | {"no_proxy": "*"},
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert ended.returncode == 0, f"{command}\n{ended.stderr}"
    return ended.stdout.replace(service.url, ADDRESS).rstrip()


def assert_examples_work(text: str, service: Service) -> None:
    examples = [*examples_in(text)]
    assert examples, "there is no example"
    for command, output in examples:
        assert alike(output_of(command, service)) == alike(output), command


@needs_curl
def test_the_examples_of_the_readme_work(start: StartService) -> None:
    assert_examples_work(README.read_text("utf-8"), start(USERSVC_REGISTER_RATE="60/minute"))


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
x-request-id: 1
x-content-type-options: nosniff
cache-control: no-store
content-security-policy: default-src 'none'; frame-ancestors 'none'
x-frame-options: DENY
referrer-policy: no-referrer
cross-origin-resource-policy: same-origin
content-length: 24

{"data":{"status":"ok"}}
$ curl -s http://127.0.0.1:8000/readyz
{"data":{"status":"ok"}}
```
"""


@needs_curl
def test_a_good_example_passes(service: Service) -> None:
    assert [output.count("\n") for _, output in examples_in(GOOD)] == [12, 0]
    assert_examples_work(GOOD, service)


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
def test_a_bad_example_is_found(service: Service, text: str) -> None:
    with pytest.raises(AssertionError):
        assert_examples_work(text, service)
