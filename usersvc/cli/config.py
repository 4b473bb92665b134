"""``usersvc config``."""

import os
import re
from collections.abc import Mapping

import click

from usersvc.cli.output import print_json, print_message
from usersvc.config import VARIABLES, Settings, read_dotenv

HIDDEN = "(set)"
_SECRET = re.compile(r"_(PEPPER|TOKEN|SECRET|KEY|PASSWORD)$")
_PASSWORDS = re.compile(r"(://[^:@]*:).*(?=@)|(password=)[^&#]*", re.IGNORECASE)
"""In a URL: the text between a colon and the last @, and the value of a query parameter of that name."""


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
    environ = read_dotenv() | dict(os.environ)
    settings = Settings.from_environment(environ)
    shown = {name: _shown(name, environ) for name in sorted(VARIABLES)}
    if as_json:
        print_json({"settings": shown, "without_effect": settings.without_effect})
        return
    width = max(map(len, shown))
    for name, setting in shown.items():
        print(f"{name:{width}}  {setting['value'] or '(none)'}  [{setting['source']}]")
    for name in settings.without_effect:
        print_message(f"usersvc: {name} has no effect in this version")


def _shown(name: str, environ: Mapping[str, str]) -> dict[str, str | None]:
    """The value and the source of a setting, without secrets and control characters."""
    from usersvc.logs import plain  # takes longer to import than most commands need

    if file := environ.get(f"{name}_FILE"):
        return {"value": HIDDEN, "source": plain(file)}
    metadata = VARIABLES[name].metadata
    text = environ.get(name, "")
    source = "environment" if name in os.environ else ".env"
    if not text and not (name in environ and metadata["parser"].accepts_empty):
        text, source = metadata["default"] or "", "default"
    if text and _SECRET.search(name):
        text = HIDDEN
    elif "://" in text:
        text = _PASSWORDS.sub(lambda found: f"{found[1] or found[2]}{HIDDEN}", text)
    return {"value": plain(text) or None, "source": source}
