from pathlib import Path

import pytest

from tests.soak import fuzz


def test_nothing_that_is_sent_breaks_the_service(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = fuzz.run(tmp_path, 2000, seed=20261124)
    with capsys.disabled():
        print(f"\n{told}")
