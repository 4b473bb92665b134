"""Runs a command of usersvc with other values for constants and default arguments, which are not settings.

    python tests/e2e/launch.py usersvc.cli.serve:GRACEFUL_TIMEOUT=1 usersvc.web.parsing:BODY_TIMEOUT=1 serve

A worker process imports this file before it reports that it is alive, so the file itself imports little.
"""

import os
import sys
from datetime import timedelta
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

VALUES = "USERSVC_TESTS_VALUES"
"""The variable that hands the values on to worker processes."""


def _serve_with(*values: str) -> tuple[str, ...]:
    return (sys.executable, "-P", __file__, *values, "serve")


# `usersvc serve` with times, in seconds, that a test can wait for.
SHORT_GRACE = _serve_with("usersvc.cli.serve:GRACEFUL_TIMEOUT=1")
SHORT_LEASE = _serve_with("usersvc.application.mail_delivery:LEASE=2")
SHORT_LOCKS = _serve_with(
    "usersvc.adapters.sqlite.database:BUSY_TIMEOUT=0.3", "usersvc.adapters.sqlite.database:CALL_TIMEOUT=1"
)
SHORT_PAUSE = _serve_with("usersvc.adapters.redis.counts:PAUSE=0.1")
SHORT_TIMES = _serve_with(
    "usersvc.server.http_protocol:HEAD_TIMEOUT=0.5",
    "usersvc.server.http_protocol:WRITE_TIMEOUT=0.5",
    "usersvc.server.http_protocol:LINGER=0.5",
    "usersvc.cli.serve:KEEP_ALIVE=0.5",
    "usersvc.asgi.exchange:LINGER=0.5",
    "usersvc.web.parsing:BODY_TIMEOUT=0.5",
)


def set_values() -> None:
    """Set what the environment names.

    Raises:
        KeyError: there is no such constant or default argument.
    """
    for assignment in os.environ[VALUES].split():
        path, _, text = assignment.partition("=")
        module_name, _, name = path.partition(":")
        holder: dict[str, Any] = vars(import_module(module_name))
        if "." in name:
            owner, name = name.split(".")
            called = holder[owner]
            holder = (vars(called)["__init__"] if isinstance(called, type) else called).__kwdefaults__
        value = holder[name]
        holder[name] = timedelta(seconds=float(text)) if isinstance(value, timedelta) else float(text)


def create_asgi_app() -> Any:
    """As `usersvc.bootstrap.create_asgi_app`, in the serving process or in each of its workers."""
    set_values()
    return import_module("usersvc.bootstrap").create_asgi_app()


def main() -> None:
    values = [argument for argument in sys.argv if "=" in argument]
    sys.argv = ["usersvc", *(argument for argument in sys.argv[1:] if argument not in values)]
    os.environ[VALUES] = " ".join(values)
    set_values()
    uvicorn = import_module("uvicorn")
    run = partial(uvicorn.run, "tests.e2e.launch:create_asgi_app", app_dir=str(Path(__file__).parents[2]))
    vars(uvicorn)["run"] = lambda _, **options: run(**options)
    import_module("usersvc.cli").main()


if __name__ == "__main__":
    main()
