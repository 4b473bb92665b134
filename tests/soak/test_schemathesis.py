"""Schemathesis finds no response that differs from the OpenAPI document."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.server import StartService

CONFIG = Path(__file__).with_name("schemathesis.toml")
TOKEN = "a-token-of-the-tests-4711"


@pytest.mark.parametrize("token", [None, TOKEN], ids=["open", "protected"])
def test_schemathesis_finds_nothing(start: StartService, tmp_path: Path, token: str | None) -> None:
    service = start(**({} if token is None else {"USERSVC_ADMIN_TOKEN": token}))
    ended = subprocess.run(
        [
            Path(sys.executable).with_name("schemathesis"),
            f"--config-file={CONFIG}",
            "run",
            f"{service.url}/openapi.json",
            "--checks=all",
            "--phases=examples,coverage,fuzzing,stateful",
            "--max-examples=30",
            "--generation-deterministic",
            "--no-color",
            *([] if token is None else [f"--header=Authorization: Bearer {token}"]),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert re.search(r"API Links: +2 covered", ended.stdout), ended.stdout
    with service.client() as client:
        assert client.get("/readyz").status_code == 200
