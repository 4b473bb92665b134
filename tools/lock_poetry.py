"""Writes tools/poetry.txt: the requirements of tools/poetry.in and their dependencies, with the hashes of their files.

Run it with the interpreter that has Poetry, as `make lock-tools` does. Poetry resolves for every platform
and Python version at once, from the index that pip is configured for; no address of an index is written.
"""

import json
import os
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TOOLS = Path(__file__).parent
PYTHON = ">=3.11,<4.0"
"""The versions of pyproject.toml that Poetry supports."""
HEAD = """\
# Made from tools/poetry.in by `make lock-tools`, for pip: every file of every version, so for each platform and Python.
# pip refuses a file with another hash. Do not change it by hand.
"""


def requirements(lock: dict[str, Any]) -> Iterator[str]:
    """Each package of a poetry.lock as a requirement with hashes, in pip's format for `--require-hashes`."""
    for package in lock["package"]:
        marker = f" ; {package['markers']}" if "markers" in package else ""
        hashes = (f"--hash={file['hash']}" for file in package["files"])
        yield " \\\n    ".join((f"{package['name']}=={package['version']}{marker}", *hashes))


def main() -> None:
    """Resolve in a temporary project, and write the result."""
    lines = (TOOLS / "poetry.in").read_text("utf-8").splitlines()
    dependencies = [line.replace("==", " (==") + ")" for line in lines if line and not line.startswith("#")]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "pyproject.toml").write_text(
            f'[project]\nname = "tools"\nversion = "0"\nrequires-python = "{PYTHON}"\n'
            f"dependencies = {json.dumps(dependencies)}\n[tool.poetry]\npackage-mode = false\n",
            "utf-8",
        )
        subprocess.run(  # noqa: S603  # only constants
            [sys.executable, TOOLS / "poetry.py", "lock", "--directory", folder],
            env=os.environ | {"POETRY_VIRTUALENVS_CREATE": "false"},
            check=True,
        )
        lock = tomllib.loads(Path(folder, "poetry.lock").read_text("utf-8"))
    (TOOLS / "poetry.txt").write_text(HEAD + "\n".join(requirements(lock)) + "\n", "utf-8")


if __name__ == "__main__":
    main()
