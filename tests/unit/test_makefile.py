"""`make run` installs the extras that the settings need, once."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MADE = [".venv/made.stamp", ".venv/run-time.stamp", ".tools/poetry/made.stamp"]
PYTHON = f'#!/bin/sh\nexec {sys.executable} "$@"\n'
POETRY = '#!/bin/sh\nshift\necho "$@" >>poetry.log\n'


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the Makefile and its tools, an environment that is set up, and a Poetry that logs its arguments."""
    for name in ("Makefile", "tools", "pyproject.toml", "poetry.lock"):
        tmp_path.joinpath(name).symlink_to(ROOT / name)
    for program, text in ((".venv/bin/python", PYTHON), (".tools/poetry/bin/python", POETRY)):
        path = tmp_path / program
        path.parent.mkdir(parents=True)
        path.write_text(text)
        path.chmod(0o755)
    for stamp in MADE:
        tmp_path.joinpath(stamp).touch()
    return tmp_path


def installed(checkout: Path, **settings: str) -> list[str]:
    """Make the prerequisites of `make run`, and return the calls of Poetry."""
    log = checkout / "poetry.log"
    log.write_text("")
    old = [argument for stamp in MADE for argument in ("-o", stamp)]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("USERSVC_", "MAKE"))}
    subprocess.run(["make", *old, ".venv/extras.stamp"], cwd=checkout, env=inherited | settings, check=True)
    return log.read_text().splitlines()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_extras_are_installed_when_the_settings_need_other_ones(checkout: Path) -> None:
    postgres, redis = {"USERSVC_DATABASE_URL": "postgresql://host/db"}, {"USERSVC_RATE_LIMIT_STORE": "redis://host"}
    assert installed(checkout) == []
    assert installed(checkout, **postgres) == ["install --only main --extras postgres --no-interaction"]
    assert installed(checkout, **postgres) == []
    assert installed(checkout, **postgres, **redis) == ["install --only main --extras postgres redis --no-interaction"]
    checkout.joinpath(".env").write_text("USERSVC_TRACING=otlp\n")
    assert installed(checkout) == ["install --only main --extras otel --no-interaction"]
    assert installed(checkout) == []
