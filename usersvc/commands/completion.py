"""``usersvc completion``: lets a shell complete command lines."""

import click
from click.shell_completion import BashComplete, FishComplete, ZshComplete

SHELLS = {"bash": BashComplete, "zsh": ZshComplete, "fish": FishComplete}
VARIABLE = "_USERSVC_COMPLETE"


@click.command(name="completion", short_help="Print a script that lets your shell complete commands.")
@click.argument("shell", type=click.Choice(list(SHELLS)))
@click.pass_context
def command(context: click.Context, shell: str) -> None:
    r"""Print a script that lets a shell complete the commands and options of usersvc.

    \b
    Put into ~/.bashrc:
      eval "$(usersvc completion bash)"
    Put into ~/.zshrc, below compinit:
      eval "$(usersvc completion zsh)"
    Once, for fish:
      usersvc completion fish > ~/.config/fish/completions/usersvc.fish
    """
    print(SHELLS[shell](context.find_root().command, {}, "usersvc", VARIABLE).source())
