"""Prints the extras that the settings in the environment and in .env need, in one line.

Run it with an interpreter that has the package installed, with or without extras.
"""

import sys

from usersvc.config import InvalidSetting, Settings


def main() -> None:
    """Print them; nothing for settings that are not accepted, which `usersvc serve` reports."""
    try:
        extras = Settings.from_environment(check_extras=False).extras
    except InvalidSetting:
        extras = ()
    sys.stdout.write(f"{' '.join(extras)}\n")


if __name__ == "__main__":
    main()
