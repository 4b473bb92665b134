"""Runs Poetry against the package index that pip is configured for.

Run it with the interpreter that has Poetry; the arguments are those of Poetry.
"""

import os
import sys

from pip._internal.commands import create_command


def pip_settings() -> dict[str, str | None]:
    """Return pip's settings as the variables that Poetry reads.

    `pip config get` ignores defaults and reads one source at a time; the parser of `pip install` combines files,
    environment and defaults.
    """
    options, _ = create_command("install").parse_args([])
    return {
        "POETRY_PYPI_MIRROR_URL": options.index_url,
        "REQUESTS_CA_BUNDLE": options.cert,
        "HTTPS_PROXY": options.proxy,
        "HTTP_PROXY": options.proxy,
    }


def main() -> None:
    """Replace this process with Poetry; variables that the caller has set take precedence."""
    for name, value in pip_settings().items():
        if value:
            os.environ.setdefault(name, value)
    # A locked desktop keyring would ask for a password that a public index does not need.
    os.environ.setdefault("POETRY_KEYRING_ENABLED", "false")
    # aiohttp-apispec is only available as an old source package, and building it prints many warnings.
    os.environ.setdefault("PYTHONWARNINGS", "ignore")
    os.execv(sys.executable, [sys.executable, "-m", "poetry", *sys.argv[1:]])  # noqa: S606 no shell, no outside input


if __name__ == "__main__":
    main()
