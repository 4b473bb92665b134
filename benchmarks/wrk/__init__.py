"""Loads a server with wrk, and parses its report."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

_runs = count()


@dataclass(frozen=True, slots=True)
class Report:
    """The result of a run."""

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    errors: int
    """Responses other than 2xx and 3xx, and failed connections."""

    @property
    def rate(self) -> float:
        """Requests a second."""
        return self.requests / self.seconds


def need_wrk() -> None:
    """Raises:
    SystemExit: wrk is not installed.
    """
    if shutil.which("wrk") is None:
        sys.exit("wrk is missing: install the package wrk of your distribution")


def get(url: str, *, seconds: float, connections: int, headers: Mapping[str, str]) -> Report:
    """Send the same request repeatedly."""
    return _run(url, seconds, connections, headers, "report.lua")


def register(base: str, *, seconds: float, connections: int) -> Report:
    """Register users, each with a new address."""
    return _run(f"{base}/register", seconds, connections, {}, "register.lua", str(next(_runs)))


def _run(
    url: str, seconds: float, connections: int, headers: Mapping[str, str], script: str, *arguments: str
) -> Report:
    command = ["wrk", "--threads=1", f"--connections={connections}", f"--duration={max(1, round(seconds))}s"]
    command += ["--timeout=60s", f"--script=benchmarks/wrk/{script}"]
    command += [word for name, value in headers.items() for word in ("--header", f"{name}: {value}")]
    output = subprocess.run(
        [*command, url, "--", *arguments], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout
    [line] = [line for line in output.splitlines() if line.startswith("REPORT ")]
    return Report(**json.loads(line.removeprefix("REPORT ")))
