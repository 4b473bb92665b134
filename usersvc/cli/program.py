"""The console script ``usersvc``: its commands and exit codes."""

import io
import os
import signal
import sys
from collections.abc import Sequence

import click

import usersvc
from usersvc.application.errors import StorageUnavailable
from usersvc.cli import config, database, outbox, users
from usersvc.cli.output import FAILED, REFUSED, Failure, discard_output
from usersvc.config import InvalidSetting


@click.group(
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


for group in (config.commands, database.commands, outbox.commands, users.commands):
    program.add_command(group)


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
    """Run a command; raises ``SystemExit`` with a code of ``usersvc.cli.output`` or of uvicorn unless it succeeds."""
    for name, mode, flags in (("stdin", "r", os.O_WRONLY), ("stdout", "w", os.O_RDONLY), ("stderr", "w", os.O_WRONLY)):
        if getattr(sys, name) is None:
            # The caller has closed it. Messages are discarded; using one of the other two fails.
            setattr(sys, name, os.fdopen(os.open(os.devnull, flags), mode, encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Do not fail because of characters that the encoding lacks.
            stream.reconfigure(errors="backslashreplace")
    try:
        code = program.main(arguments, prog_name="usersvc", standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except (InvalidSetting, StorageUnavailable) as error:
        Failure(str(error)).show()
        code = REFUSED if isinstance(error, InvalidSetting) else FAILED
    except click.Abort as error:
        Failure("stopped").show()
        code = 128 + signal.SIGINT if isinstance(error.__cause__, KeyboardInterrupt) else FAILED
    except OSError as error:
        if error.filename is not None:
            Failure(f"cannot open {error.filename}: {error.strerror}").show()
        else:
            # A standard stream failed. For a broken pipe: its reader, such as `head`, has closed it.
            discard_output()
            if not isinstance(error, BrokenPipeError):
                Failure(f"standard output or input failed: {error.strerror}").show()
        code = FAILED
    if code:
        raise SystemExit(code)
