"""Executes the examples of a document, in order and in one folder.

An example is a fenced block marked ``console``: a line that begins with ``$`` is a command, continued over lines that
end in a backslash; the lines up to the next command are its output. A block marked ``text`` with the title "The
service" or "The mail server" shows lines of that terminal. Ids, times and cursors only have to look alike.
"""

import os
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import NamedTuple

from tests.e2e.server import DEADLINE, Service, environment, free_port

SERVICE, MAIL_SERVER = "The service", "The mail server"

BIN = ".venv/bin/"
RUN = (["make", "run"], ["usersvc", "serve"])
MAIL = ["python", "-m", "aiosmtpd"]
PROGRAMS = frozenset({"cat", "curl", "grep", "head", "printf", "usersvc", "wc"})
"""Other commands that may be executed."""

# As documents name them.
FOLDER = "/home/alice/usersvc"
ADDRESSES = ("127.0.0.1:8000", "127.0.0.1:8025")

_BLOCK = re.compile(
    r'^(?P<fence>```+)(?P<kind>\w+)(?: title="(?P<title>[^"\n]*)")?\n(?P<text>.*?)^(?P=fence)$',
    re.DOTALL | re.MULTILINE,
)
_SETTING = re.compile(r"[A-Z][A-Z0-9_]*=")
_VOLATILE = (
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[47][0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}\b"), "<id>"),
    (re.compile(r"\b\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z"), "<time>"),
    (re.compile(r"\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d (GMT|[+-]\d{4})"), "<date>"),
    (re.compile(r'(?<="register";)r=\d+;t=\d+'), "<left>"),
    (re.compile(r"(?<=[?&]cursor=)[\w-]+"), "<cursor>"),
    (re.compile(r"(?<=milliseconds=)\d+\.\d"), "<milliseconds>"),
    (re.compile(r"(?<=next in )\d+(?= s)"), "<seconds>"),
)


class Example(NamedTuple):
    command: str
    output: str


class Seen(NamedTuple):
    """Lines that appear in a terminal other than the one where commands are typed."""

    where: str
    lines: list[str]


def examples_in(text: str) -> Iterator[Example | Seen]:
    for block in _BLOCK.finditer(text):
        if block["kind"] == "console":
            beginning, *parts = re.split(r"^\$ ", block["text"], flags=re.MULTILINE)
            assert not beginning, f"a console block has to begin with a command: {block['text']}"
            for part in parts:
                command, _, output = part.replace("\\\n", "").partition("\n")
                yield Example(command, output.rstrip())
        elif block["title"] in {SERVICE, MAIL_SERVER}:
            yield Seen(block["title"], block["text"].splitlines())


def alike(text: str) -> str:
    """The text with ids, times and the like masked."""
    for pattern, mask in _VOLATILE:
        text = pattern.sub(mask, text)
    return text


class Terminal(AbstractContextManager["Terminal"]):
    """Executes the commands of one document, and keeps the servers that it starts."""

    def __init__(self, folder: Path, service: Service | None = None) -> None:
        """``service`` runs already; by default one is started when it is needed."""
        self._folder = folder
        self._given = service
        self._exported: dict[str, str] = {}
        self._running: dict[str, Service] = {}
        self._real = {shown: f"127.0.0.1:{free_port()}" for shown in ADDRESSES}
        if service is not None:
            self._real[ADDRESSES[0]] = service.url.removeprefix("http://")

    def __exit__(self, *_: object) -> None:
        for name in [*self._running]:
            self._stop(name)

    def execute(self, example: Example | Seen) -> None:
        """Do what an example shows; raises AssertionError if the output differs."""
        if isinstance(example, Seen):
            assert example.where in self._running, f"{example.where.lower()} does not run"
            process = self._running[example.where]
            lines = [alike(line.strip()) for line in example.lines]
            _wait_until(lambda: all(line in alike(self._to_shown(process.output)) for line in lines), f"{lines}")
            return
        words = [word.removeprefix(BIN) for word in shlex.split(example.command)]
        settings = dict(word.split("=", 1) for word in words if _SETTING.match(word))
        program = [word for word in words if not _SETTING.match(word)]
        if program == ["export"]:
            self._exported |= settings
            output = ""
        elif program in RUN:
            output = self._serve(settings, lines=example.output.count("\n") + 1 if example.output else 0)
        elif program[: len(MAIL)] == MAIL:
            output = self._take_mail(program)
        else:
            assert "".join(program[:1]) in PROGRAMS, f"this is not executed here: {example.command}"
            output = self._output_of(example.command)
        assert alike(output) == alike(example.output), f"{example.command}\n{output}"

    def _serve(self, settings: dict[str, str], lines: int) -> str:
        """Restart the service, and return the first lines that it prints."""
        self._stop(SERVICE)
        port = self._real[ADDRESSES[0]].rpartition(":")[2]
        # Documents show the default rate.
        ours = {"USERSVC_PORT": port, "USERSVC_REGISTER_RATE": "60/minute"}
        command = (sys.executable, "-m", "usersvc", "serve")
        service = Service(self._folder, ours | self._to_real(self._exported | settings), command)
        self._running[SERVICE] = service
        service.wait_until_it_responds()
        return self._to_shown("\n".join(service.output.splitlines()[:lines]))

    def _take_mail(self, command: list[str]) -> str:
        self._stop(MAIL_SERVER)
        command = [sys.executable, *map(self._to_real_text, command[1:])]
        self._running[MAIL_SERVER] = Service(self._folder, {"PYTHONUNBUFFERED": "1"}, tuple(command))
        host, _, port = self._real[ADDRESSES[1]].partition(":")
        _wait_until(lambda: _listens(host, int(port)), "the mail server does not listen")
        return ""

    def _output_of(self, command: str) -> str:
        if SERVICE not in self._running and self._given is None:
            self._serve({}, lines=0)
        home = str(self._folder)
        # Without the user's configuration of curl.
        variables = {"no_proxy": "*", "HOME": home, "CURL_HOME": home, "XDG_CONFIG_HOME": home}
        ended = subprocess.run(
            ["/bin/sh", "-c", self._to_real_text(command.removeprefix(BIN))],
            cwd=self._folder,
            env=environment(self._to_real(self._exported))
            | variables
            | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert ended.returncode == 0, f"{command}\n{ended.stderr}"
        return self._to_shown(ended.stdout).rstrip()

    def _stop(self, name: str) -> None:
        if name in self._running:
            self._running.pop(name).stop()

    def _to_real_text(self, text: str) -> str:
        for shown, real in self._real.items():
            text = text.replace(shown, real)
        return text

    def _to_real(self, settings: dict[str, str]) -> dict[str, str]:
        return {name: self._to_real_text(value) for name, value in settings.items()}

    def _to_shown(self, text: str) -> str:
        for shown, real in self._real.items():
            text = text.replace(real, shown)
        return text.replace(str(self._folder), FOLDER)


def _listens(host: str, port: int) -> bool:
    with suppress(OSError), socket.create_connection((host, port), DEADLINE):
        return True
    return False


def _wait_until(true: Callable[[], bool], otherwise: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not true():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.02)
