"""SIGINT and SIGTERM during work that must only be stopped at certain points."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

from usersvc.cli.exit_codes import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """A context manager that records signals; ``raise_if_stopped`` and ``interruptible`` raise ``Stopped`` for them."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self._is_interruptible = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> Self:
        """Install the handlers."""
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._record)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Restore the previous handlers."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() itself gave

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
