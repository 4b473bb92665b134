"""Runs Poetry against the package index that pip is configured for.

Run it with the interpreter that Poetry is installed for; the arguments are Poetry's own.
"""

import os
import sys

from pip._internal.commands import create_command


def pip_settings() -> dict[str, str | None]:
    """Return what pip's files, environment and defaults come to, in the variables that Poetry reads.

    `pip config get` knows no defaults and one source at a time; the parser of `pip install` is where pip
    itself puts all of them together.
    """
    options, _ = create_command("install").parse_args([])
    return {
        "POETRY_PYPI_MIRROR_URL": options.index_url,
        "REQUESTS_CA_BUNDLE": options.cert,
        "HTTPS_PROXY": options.proxy,
        "HTTP_PROXY": options.proxy,
    }


def main() -> None:
    """Become Poetry, with those settings; what the caller has set already stays."""
    for name, value in pip_settings().items():
        if value:
            os.environ.setdefault(name, value)
    # A locked desktop keyring would make a first run wait for a password that no public index needs.
    os.environ.setdefault("POETRY_KEYRING_ENABLED", "false")
    # aiohttp-apispec comes as an old source package only: building it prints a screenful of warnings for its authors.
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.execv(sys.executable, [sys.executable, "-m", "poetry", *sys.argv[1:]])  # noqa: S606 no shell, no outside input


if __name__ == "__main__":
    main()
