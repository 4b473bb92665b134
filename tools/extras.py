"""Prints the extras that the settings in the environment and in .env need, in one line.

Run it with an interpreter that has the package installed; the extras need not be.
"""

import sys

from usersvc.config import InvalidSetting, Settings


def main() -> None:
    """Print the extras; an empty line for invalid settings, which `usersvc serve` reports."""
    try:
        extras = Settings.from_environment(check_extras=False).extras
    except InvalidSetting:
        extras = ()
    sys.stdout.write(f"{' '.join(extras)}\n")


if __name__ == "__main__":
    main()
