"""SIGINT and SIGTERM during work that must only be stopped at certain points."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Never

from usersvc.cli.output import Failure

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(Failure):
    """A signal stopped a command."""


@contextmanager
def delayed_signals() -> Iterator[None]:
    """Delay signals until ``interruptible``. Threads inherit this, so none of them receives a signal in between."""
    previous = {number: signal.signal(number, _stop) for number in SIGNALS}
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


@contextmanager
def interruptible() -> Iterator[None]:
    """Raise ``Stopped`` if a signal has arrived, or as soon as one arrives, also while the block waits for input."""
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _stop(number: int, _: object) -> Never:
    # As in shells.
    raise Stopped("stopped", exit_code=128 + number)
