from pathlib import Path

import pytest

from tests.soak import fuzz


def test_service_withstands_invalid_requests(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    summary = fuzz.run(tmp_path, 2000, seed=20261124)
    with capsys.disabled():
        print(f"\n{summary}")
