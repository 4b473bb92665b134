"""SIGINT and SIGTERM during work that must only be stopped at certain points."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from usersvc.cli.output import Stopped


class StopSignals:
    """Records signals; ``raise_if_stopped`` and ``interruptible`` raise ``Stopped`` for them."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._is_interruptible = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Install the handlers for the duration of the block."""
        previous = {number: signal.signal(number, self._record) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def raise_if_stopped(self) -> None:
        """Raise ``Stopped`` if a signal has arrived."""
        if self._signal is not None:
            raise Stopped(self._signal)

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Raise ``Stopped`` as soon as a signal arrives, also while the block waits for input."""
        self._is_interruptible = True
        try:
            self.raise_if_stopped()
            yield
        finally:
            self._is_interruptible = False

    def _record(self, number: int, _: FrameType | None) -> None:
        self._signal = number
        if self._is_interruptible:
            self._is_interruptible = False
            self.raise_if_stopped()
