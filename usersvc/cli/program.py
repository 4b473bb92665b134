"""The console script ``usersvc``: its commands and exit codes."""

import io
import os
import signal
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Final, NoReturn

import click

import usersvc
from usersvc.cli.exit_codes import FAILED, Failure, Stopped

COMMANDS: Final = {
    "config": "config.commands",
    "db": "database.commands",
    "outbox": "outbox.commands",
    "users": "users.commands",
}
"""By name, the module in ``usersvc.cli`` and the attribute of each group."""


class Program(click.Group):
    """A group that imports a subgroup only when it is used, so that the service does not load the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, sorted."""
        return sorted([*super().list_commands(ctx), *COMMANDS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, or None."""
        if cmd_name not in COMMANDS:
            return super().get_command(ctx, cmd_name)
        module, _, name = COMMANDS[cmd_name].partition(".")
        command: click.Command = getattr(import_module(f"usersvc.cli.{module}"), name)
        return command


@click.group(
    cls=Program,
    name="usersvc",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help=f"""{usersvc.__doc__}

    It is configured by USERSVC_* environment variables or a file .env in this folder: see `usersvc config check`.

    Data is written to standard output, messages to standard error. Exit codes: 0 success; 1 failure; 2 invalid command
    line or setting; 3 lines were rejected by an import, or the service could not start; 130 and 143 stopped by a
    signal.
    """,
)
@click.version_option(usersvc.__version__, prog_name="usersvc", message="%(prog)s %(version)s")
def program() -> None:
    """The help is above."""


@program.command(short_help="Run the service.")
def serve() -> None:
    """Run the service until it is stopped.

    \b
    Example:
      USERSVC_PORT=8080 usersvc serve
    """
    from usersvc.cli import serve as serving

    serving.serve()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command.

    Raises:
        SystemExit: unless it succeeds, with a code of ``exit_codes`` or that of uvicorn for a failed start.
    """
    if sys.stderr is None:
        # Without it, messages would be written among the data on standard output.
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # until the process ends
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Do not fail because of characters that the encoding lacks.
            stream.reconfigure(errors="backslashreplace")
    try:
        code = program.main(arguments, prog_name="usersvc", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        raise SystemExit(error.exit_code) from None
    except click.Abort as error:
        _exit("stopped", 128 + signal.SIGINT if isinstance(error.__cause__, KeyboardInterrupt) else FAILED)
    except Stopped as error:
        _exit(str(error), 128 + error.signal_number)
    except Failure as error:
        _exit(str(error), FAILED)
    except OSError as error:
        if error.filename is not None or sys.stdout is None:
            raise
        # A standard stream failed, not a file. What is still buffered must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            # The reader, such as `head`, has closed the pipe.
            raise SystemExit(FAILED) from None
        _exit(f"standard output or input failed: {error.strerror}", FAILED)
    if code:
        raise SystemExit(code)


def _exit(reason: str, code: int) -> NoReturn:
    from usersvc.logs import plain  # takes longer to import than most commands need

    # It may contain a file name, which may contain control characters.
    print(f"usersvc: {plain(reason)}", file=sys.stderr)
    raise SystemExit(code)
