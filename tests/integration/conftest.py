import os
from pathlib import Path

import pytest

from tests.integration.commands import Commands


@pytest.fixture
def usersvc(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Commands:
    """The console script, in an empty folder and with the database users.db."""
    for name in os.environ:
        if name.startswith("USERSVC_"):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("USERSVC_DATABASE_URL", "sqlite:///users.db")
    return Commands(capsys, tmp_path)
