"""``usersvc config``."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

import click

from usersvc.cli.exit_codes import REFUSED
from usersvc.cli.output import print_json, print_message

HIDDEN = "(set)"
_SECRET = re.compile(r"_(PEPPER|TOKEN|SECRET|KEY|PASSWORD)$")
_PASSWORDS = re.compile(r"(?P<before>://[^:@]*:).*(?P<after>@)|(?P<name>password=)[^&#]*", re.IGNORECASE)
"""In a URL: the text between a colon and the last @, and the value of a query parameter of that name."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A variable with its value, hidden if it is a secret, and the source of the value."""

    name: str
    value: str | None
    source: str


@click.group(name="config", short_help="Check the settings.")
def commands() -> None:
    """Check the settings."""


@commands.command(short_help="List every setting with its value; exit code 2 for an invalid one.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(*, as_json: bool) -> None:
    """Read the settings as the service does, and list them with their values and the sources of these.

    Secrets are shown as `(set)`. An invalid value is reported on standard error, with exit code 2.

    \b
    Examples:
      usersvc config check && systemctl restart usersvc
      usersvc config check --json | jq -r .settings.USERSVC_PORT.value
    """
    from usersvc.config import InvalidSetting

    try:
        settings, without_effect = _read()
    except InvalidSetting as error:
        print_message(f"usersvc: {error}")
        raise SystemExit(REFUSED) from None
    if as_json:
        documents = {setting.name: {"value": setting.value, "source": setting.source} for setting in settings}
        print_json({"settings": documents, "without_effect": [*without_effect]})
        return
    width = max(len(setting.name) for setting in settings)
    for setting in settings:
        print(f"{setting.name:{width}}  {'(none)' if setting.value is None else setting.value}  [{setting.source}]")
    for name in without_effect:
        print_message(f"usersvc: {name} has no effect in this version")


def _read() -> tuple[Sequence[Setting], Sequence[str]]:
    from usersvc.config import VARIABLES, Settings, read_dotenv
    from usersvc.logs import plain

    in_file = read_dotenv()
    environ = in_file | dict(os.environ)
    settings = Settings.from_environment(environ)
    found: list[Setting] = []
    for name in sorted(VARIABLES):
        value, text = getattr(settings, VARIABLES[name].name), environ.get(name)
        if file := environ.get(f"{name}_FILE"):
            found.append(Setting(name, HIDDEN, plain(file)))
        elif text is None or (text == "" and value is not None):
            found.append(Setting(name, _default(name, value), "default"))
        else:
            source = "environment" if name in os.environ else ".env"
            found.append(Setting(name, None if text == "" else _displayed(name, text), source))
    return found, settings.without_effect


def _displayed(name: str, text: str) -> str:
    """A value as it was written, without secrets and control characters."""
    from usersvc.logs import plain

    if _SECRET.search(name):
        return HIDDEN
    return plain(_PASSWORDS.sub(_hide, text) if "://" in text else text)


def _hide(found: re.Match[str]) -> str:
    return f"{found['before'] or found['name']}{HIDDEN}{found['after'] or ''}"


def _default(name: str, value: object) -> str | None:
    from usersvc.setting_parsers import SqliteDatabase

    if value is None or value in {"", ()}:
        return None
    if isinstance(value, SqliteDatabase):
        return f"sqlite:///{value.path}"
    return _displayed(name, str(value))
