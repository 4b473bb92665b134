"""SECURITY.md names places and tests; each of them is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUOTED = re.findall(r"`([^`\n]+)`", (ROOT / "SECURITY.md").read_text("utf-8"))


@pytest.mark.parametrize(
    "named", sorted({each for each in QUOTED if re.match(r"(unit|integration|contract|e2e|soak)/", each)})
)
def test_a_test_that_is_named_exists(named: str) -> None:
    file, _, test = named.partition("::")
    assert f"def {test}" in (ROOT / "tests" / file).read_text("utf-8") if test else (ROOT / "tests" / file).exists()


@pytest.mark.parametrize(
    "named", sorted({each for each in QUOTED if re.fullmatch(r"(web|adapters|application|domain)/\S+\.(py|txt)", each)})
)
def test_a_module_that_is_named_exists(named: str) -> None:
    assert (ROOT / "usersvc" / named).exists()


def test_every_setting_that_is_named_is_one() -> None:
    settings = (ROOT / "docs/configure.md").read_text("utf-8")
    for named in {name for each in QUOTED for name in re.findall(r"USERSVC_[A-Z_]+", each)}:
        assert f"| `{named}` |" in settings
