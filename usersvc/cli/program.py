"""The console script ``usersvc``: its commands, and how it ends."""

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
"""Where in ``usersvc.cli`` each is, but for ``serve``."""


class Program(click.Group):
    """A group that imports a command when somebody asks for it: a service that runs has no use for the others."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All names, sorted."""
        return sorted([*super().list_commands(ctx), *COMMANDS])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of this name, if there is one."""
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

    USERSVC_* variables of the environment, or a file .env in this folder, set it up: see `usersvc config check`.

    Data goes to standard output, everything else to standard error. Exit codes: 0 done; 1 failed; 2 the command line
    or a setting is wrong; 3 imported but for some lines, or the service could not start; 130 and 143 stopped by a
    signal.
    """,
)
@click.version_option(usersvc.__version__, prog_name="usersvc", message="%(prog)s %(version)s")
def program() -> None:
    """See above."""


@program.command(short_help="Run the service.")
def serve() -> None:
    """Run the service until it is stopped.

    USERSVC_* variables, or a file .env here, set it up.

    \b
    Example:
      USERSVC_PORT=8080 usersvc serve
    """
    from usersvc.cli import serve as serving

    serving.serve()


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the arguments name.

    Raises:
        SystemExit: with code 1 when the command fails, 2 for wrong arguments or a bad setting, 3 when an import
            rejected some lines, 128 and a signal's number when that stopped it, with uvicorn's own for a failed start.
    """
    if sys.stderr is None:
        # Else what is said would go to standard output, among the data.
        sys.stderr = Path(os.devnull).open("w", encoding="utf-8")  # noqa: SIM115  # until the process ends
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # What a terminal or pipe cannot take is no reason to fail.
            stream.reconfigure(errors="backslashreplace")
    try:
        code = program.main(arguments, prog_name="usersvc", standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        raise SystemExit(error.exit_code) from None
    except click.Abort as error:
        _end("stopped", 128 + signal.SIGINT if isinstance(error.__cause__, KeyboardInterrupt) else FAILED)
    except Stopped as error:
        _end(str(error), 128 + error.signal_number)
    except Failure as error:
        _end(str(error), FAILED)
    except OSError as error:
        if error.filename is not None or sys.stdout is None:
            raise
        # It is of none that was opened by its name. What is still in the buffer must not raise again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):
            # Whoever reads has seen enough, as `head` does.
            raise SystemExit(FAILED) from None
        _end(f"standard output or input failed: {error.strerror}", FAILED)
    if code:
        raise SystemExit(code)


def _end(reason: str, code: int) -> NoReturn:
    from usersvc.logs import plain  # takes longer to import than most commands need

    # It may name a file, and file names may hold anything.
    print(f"usersvc: {plain(reason)}", file=sys.stderr)
    raise SystemExit(code)
