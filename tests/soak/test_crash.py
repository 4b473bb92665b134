from pathlib import Path

import pytest

from tests.soak import crash


def test_nothing_acknowledged_is_lost_when_the_service_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "service"
    folder.mkdir()
    counts = crash.run(folder, kills=20)
    with capsys.disabled():
        print(f"\n{counts}")
    assert counts.acknowledged > 0
