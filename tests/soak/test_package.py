"""The wheel is complete: it works in an empty environment, and contains type information."""

import subprocess
import sys
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

import usersvc
from tests.e2e.api import register
from tests.e2e.server import run_to_end, running

ROOT = Path(__file__).resolve().parents[2]
POETRY = ROOT / ".tools" / "poetry" / "bin" / "python"


def run(*command: str | Path, folder: Path = ROOT) -> str:
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if "-m pip" in " ".join(map(str, command)) and "connection broken by" in ended.stderr:
        pytest.skip("no package index responds")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.skipif(not POETRY.exists(), reason="make has not set up Poetry here")
def test_the_wheel_is_complete_and_works_in_an_empty_environment(tmp_path: Path) -> None:
    run(POETRY, "tools/poetry.py", "build", "--output", tmp_path / "dist")
    [wheel] = tmp_path.glob("dist/*.whl")
    [_source] = tmp_path.glob("dist/*.tar.gz")

    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        [metadata] = [archive.read(name).decode() for name in names if name.endswith(".dist-info/METADATA")]
    assert {name.partition("/")[0] for name in names} == {"usersvc", f"usersvc-{usersvc.__version__}.dist-info"}
    files = {str(path.relative_to(ROOT)) for path in (ROOT / "usersvc").rglob("*.*") if path.suffix != ".pyc"}
    assert "usersvc/py.typed" in names
    assert files <= names
    extras = Parser().parsestr(metadata).get_all("Provides-Extra", [])
    assert set(extras) == {"otel", "postgres", "redis"}
    readme = ROOT.joinpath("README.md").read_text("utf-8")
    assert all(f"`{extra}`" in readme for extra in extras)

    environment, folder = tmp_path / "environment", tmp_path / "folder"
    folder.mkdir()
    run(sys.executable, "-m", "venv", environment)
    pip = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--retries", "1", "--timeout", "15"]
    run(environment / "bin" / "python", *pip, wheel)
    program = str(environment / "bin" / "usersvc")
    assert run(program, "--version", folder=folder) == f"usersvc {usersvc.__version__}\n"
    with running(folder, command=[program, "serve"]) as service, service.client() as client:
        user = register(client)
        assert client.get("/users").json()["data"] == [user]
        assert client.get("/docs").status_code == 200
        service.wait_for_output("sent a welcome mail")
    without = run_to_end(folder, {"USERSVC_TRACING": "otlp"}, [program, "serve"])
    assert (without.returncode, without.stderr.count("\n")) == (2, 1)
    assert "usersvc[otel]" in without.stderr
