"""Names, defaults, codes and tables in README.md, CONTRIBUTING.md and docs/ are those of the code."""

import ast
import re
from collections.abc import Iterator
from itertools import takewhile
from pathlib import Path

import click
import pytest
import yaml

from usersvc.adapters.memory import InMemoryOutbox
from usersvc.adapters.sqlite.schema import MIGRATIONS
from usersvc.adapters.telemetry.prometheus import PrometheusMetrics
from usersvc.cli.program import program
from usersvc.config import SECRETS, VARIABLES, InvalidSetting, Settings, cores
from usersvc.web.problems import PROBLEMS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
DOCUMENTS = [*(ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "SECURITY")), *sorted(DOCS.glob("*.md"))]
TEXT_OF = {document.name: document.read_text("utf-8") for document in DOCUMENTS}
EVERYTHING = "\n".join(TEXT_OF.values())


def rows(page: str, heading: str) -> list[list[str]]:
    """The cells of the table below a heading line."""
    lines = TEXT_OF[page].splitlines()
    table = takewhile(lambda line: line.startswith("|"), lines[lines.index(heading) + 2 :])
    # In code, a vertical bar is escaped.
    return [[cell.strip().replace(r"\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table]


SETTINGS = {row[0].strip("`"): row[1:] for row in rows("configure.md", "| name | default | accepts | what it is |")}


def test_the_table_of_settings_is_complete() -> None:
    assert set(SETTINGS) == set(VARIABLES)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_setting_has_the_default_and_the_values_of_the_table(name: str) -> None:
    default, accepts, *_ = SETTINGS[name]
    defaults = Settings.from_environment({})
    attribute = {"database_url": "database", "smtp_url": "smtp"}.get(short := name[8:].lower(), short)
    if default == "none":
        assert not getattr(defaults, attribute)
    elif default == "cores":
        assert getattr(defaults, attribute) == cores()
    else:
        assert Settings.from_environment({name: default.strip("`")}) == defaults
    if name != "USERSVC_HOST":
        with pytest.raises(InvalidSetting) as refused:
            Settings.from_environment({name: " "})
        assert str(refused.value) == f"{name} accepts {accepts.replace('`', '')}."


def test_the_settings_that_hold_secrets_are_listed() -> None:
    [named] = re.findall(r"^Settings that hold secrets \(([^)]*)\)", TEXT_OF["configure.md"], re.MULTILINE)
    assert re.findall(r"USERSVC_[A-Z_]+", named) == list(SECRETS)


def test_the_table_of_problems_equals_the_code() -> None:
    assert rows("api.md", "| status | code | what it means |") == [
        [str(problem.status), f"`{problem.code}`", problem.description] for problem in PROBLEMS.values()
    ]


def test_the_table_of_invalid_fields_has_every_code() -> None:
    in_code = set()
    modules = [ROOT / f"usersvc/domain/{name}.py" for name in ("user", "email_address", "password")]
    for module in (*modules, *(ROOT / "usersvc/web/schemas").glob("*.py")):
        source = module.read_text("utf-8")
        in_code |= set(re.findall(r'(?:flaw|refuse)\("([a-z-]+)"', source))
        in_code |= set(re.findall(r'Violation\([^()]*(?:\([^()]*\))?[^()]*?, "([a-z-]+)", ', source))
    documented = {code for row in rows("api.md", "| field | codes |") for code in re.findall(r"`([a-z-]+)`", row[1])}
    assert documented == in_code
    assert len(in_code) > 10


async def test_the_table_of_metrics_equals_the_code() -> None:
    exposition = (await PrometheusMetrics().exposition(InMemoryOutbox())).decode()
    texts = dict(re.findall(r"^# HELP (usersvc_\w+) (.*)$", exposition, re.MULTILINE))
    kinds = dict(re.findall(r"^# TYPE (usersvc_\w+) (.*)$", exposition, re.MULTILINE))
    documented = [
        (name.strip("`"), kind, what)
        for name, kind, _, what in rows("metrics.md", "| name | type | labels | what it is |")
    ]
    # `_created` has the time at which a series began.
    assert sorted(documented) == sorted(
        (name, kinds[name], texts[name]) for name in texts if not name.endswith("_created")
    )


def test_every_alert_has_a_section() -> None:
    groups = yaml.safe_load((ROOT / "deploy/observability/alerts.yaml").read_text("utf-8"))["groups"]
    alerts = [rule["alert"] for group in groups for rule in group["rules"]]
    section = TEXT_OF["operate.md"].partition("\n## Alerts\n")[2].partition("\n## ")[0]
    assert re.findall(r"^### (\w+)$", section, re.MULTILINE) == alerts


def commands_of(command: click.Command, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands_of(below, f"{path} {name}")
    else:
        yield path, command.get_short_help_str(limit=200)


COMMANDS = dict(commands_of(program, "usersvc"))


def test_the_table_of_commands_equals_the_code() -> None:
    documented = {name.strip("`"): text for name, text in rows("commands.md", "| command | what it does |")}
    assert documented == COMMANDS


GROUPS = "|".join(sorted({name.split()[1] for name in COMMANDS if name.count(" ") > 1}))
TARGETS = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)


@pytest.mark.parametrize(
    ("pattern", "existing"),
    [
        (r"\bUSERSVC_[A-Z_]+[A-Z]\b", {*VARIABLES, *(f"{name}_FILE" for name in SECRETS)}),
        (rf"\busersvc (?:{GROUPS}) [a-z]+\b", set(COMMANDS)),
        (r"(?:`|^)make ([a-z][a-z-]*)", set(TARGETS)),
    ],
    ids=["settings", "commands", "targets of make"],
)
def test_what_documents_name_exists(pattern: str, existing: set[str]) -> None:
    named = set(re.findall(pattern, EVERYTHING, re.MULTILINE))
    assert len(named) > 5
    assert named <= existing


def test_every_schema_version_is_listed() -> None:
    assert [row[0] for row in rows("upgrade.md", "| schema | what it added |")] == [
        str(version) for version in range(1, len(MIGRATIONS) + 1)
    ]


@pytest.mark.parametrize("migration", MIGRATIONS)
def test_a_migration_only_adds(migration: str) -> None:
    for statement in filter(str.strip, migration.split(";")):
        assert re.match(r"\s*(CREATE (TABLE|INDEX)|ALTER TABLE \w+ ADD COLUMN)\b", statement)


def test_every_named_file_exists() -> None:
    named = set(re.findall(r"`((?:usersvc|tests|features|deploy|docs|benchmarks|tools)/[\w./-]*)`", EVERYTHING))
    assert len(named) > 20
    assert [each for each in sorted(named) if not (ROOT / each).exists()] == []


SECURITY_DOCUMENTS = ("SECURITY.md", "docs/threat-model.md", "docs/security-requirements.md")
QUOTED = {
    quoted for name in SECURITY_DOCUMENTS for quoted in re.findall(r"`([^`\n]+)`", (ROOT / name).read_text("utf-8"))
}


def test_every_test_and_module_that_a_security_document_names_exists() -> None:
    tests = {each for each in QUOTED if re.match(r"(unit|contract|integration|asgi|e2e|soak)/", each)}
    modules = {
        each for each in QUOTED if re.fullmatch(r"(web|adapters|application|domain|server)/(\S+\.(py|txt))?", each)
    }
    assert (len(tests) > 20, len(modules) > 10) == (True, True)
    for each in tests:
        file, _, test = each.partition("::")
        assert f"def {test}" in (ROOT / "tests" / file).read_text("utf-8"), each
    assert [each for each in modules if not (ROOT / "usersvc" / each).exists()] == []


@pytest.mark.parametrize("document", [*ROOT.glob("*.md"), ROOT / "benchmarks/README.md"], ids=lambda path: path.name)
def test_every_link_of_a_document_outside_the_site_resolves(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?://)([^)#]+)", document.read_text("utf-8")):
        assert (document.parent / target).exists(), target


def test_every_class_in_the_diagram_and_on_the_architecture_page_exists() -> None:
    diagram = (DOCS / "images/layout.svg").read_text("utf-8")
    named = set(re.findall(r">([A-Z][a-z]+(?:[A-Z][a-z]+)+|AiohttpASGI|PROBLEMS)<", diagram))
    named |= set(re.findall(r"`([A-Z][a-z]+(?:[A-Z][a-z]+)+|Users|Outbox|Notifier)`", TEXT_OF["architecture.md"]))
    source = "\n".join(path.read_text("utf-8") for path in (ROOT / "usersvc").rglob("*.py"))
    assert len(named) > 15
    for name in named:
        assert re.search(rf"^(class |def )?{name}\b", source, re.MULTILINE), name


def test_python_code_parses() -> None:
    blocks = re.findall(r"^ *```python\b[^\n]*\n(.*?)^ *```$", EVERYTHING, re.DOTALL | re.MULTILINE)
    written = [block for block in blocks if "--8<--" not in block]
    assert written
    for block in written:
        ast.parse(block)
