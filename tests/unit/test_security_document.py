"""The tests, modules and settings that the security documents name exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("SECURITY.md", "docs/threat-model.md", "docs/security-requirements.md")
QUOTED = {each for name in DOCUMENTS for each in re.findall(r"`([^`\n]+)`", (ROOT / name).read_text("utf-8"))}


def test_every_test_that_is_named_exists() -> None:
    named = {each for each in QUOTED if re.match(r"(unit|contract|integration|asgi|e2e|soak)/", each)}
    assert len(named) > 20
    for each in named:
        file, _, test = each.partition("::")
        assert (ROOT / "tests" / file).exists(), each
        assert f"def {test}" in (ROOT / "tests" / file).read_text("utf-8"), each


def test_every_module_that_is_named_exists() -> None:
    named = {
        each for each in QUOTED if re.fullmatch(r"(web|adapters|application|domain|server)/(\S+\.(py|txt))?", each)
    }
    assert len(named) > 10
    assert [each for each in named if not (ROOT / "usersvc" / each).exists()] == []


def test_every_setting_that_is_named_is_one() -> None:
    settings = (ROOT / "docs/configure.md").read_text("utf-8")
    for named in {name for each in QUOTED for name in re.findall(r"USERSVC_[A-Z_]+", each)}:
        assert f"| `{named}` |" in settings
