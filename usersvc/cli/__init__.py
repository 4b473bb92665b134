"""The console script."""

from usersvc.cli.program import main

__all__ = ("main",)
