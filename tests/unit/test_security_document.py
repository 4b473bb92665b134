"""The tests, modules and settings that the security documents name exist."""

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("SECURITY.md", "docs/threat-model.md", "docs/security-requirements.md")
QUOTED = {each for name in DOCUMENTS for each in re.findall(r"`([^`\n]+)`", (ROOT / name).read_text("utf-8"))}


def test_every_named_test_exists() -> None:
    named = {each for each in QUOTED if re.match(r"(unit|contract|integration|asgi|e2e|soak)/", each)}
    assert len(named) > 20
    for each in named:
        file, _, test = each.partition("::")
        assert f"def {test}" in (ROOT / "tests" / file).read_text("utf-8"), each


def test_every_named_module_exists() -> None:
    paths = r"(web|adapters|application|domain|server)/(\S+\.(py|txt))?"
    named = {each for each in QUOTED if re.fullmatch(paths, each)}
    assert len(named) > 10
    assert [each for each in named if not (ROOT / "usersvc" / each).exists()] == []


def test_every_named_setting_exists() -> None:
    settings = (ROOT / "docs/configure.md").read_text("utf-8")
    for name in {name for each in QUOTED for name in re.findall(r"USERSVC_[A-Z_]+", each)}:
        assert f"| `{name}` |" in settings
