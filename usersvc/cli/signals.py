"""Ctrl-C and SIGTERM, while a command does work that must not be broken off just anywhere."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Self

from usersvc.cli.exit_codes import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Remembers the first signal that asks for a stop, while this is entered, until it is heeded.

    Only between two awaits of an event loop that runs meanwhile, or within ``heeded``, does anybody look.
    """

    def __init__(self) -> None:
        self._signal: int | None = None
        self._at_once = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        """Take over the signals."""
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give them back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal() itself gave

    def heed(self) -> None:
        """Return if nobody has asked for a stop.

        Raises:
            Stopped: somebody has.
        """
        if self._signal is not None:
            raise Stopped(self._signal)

    @contextmanager
    def heeded(self) -> Iterator[None]:
        """Within this, also what takes long, as waiting for input does, is broken off at once."""
        self._at_once = True
        try:
            self.heed()
            yield
        finally:
            self._at_once = False

    def _note(self, number: int, _: FrameType | None) -> None:
        self._signal = number
        if self._at_once:
            self._at_once = False
            self.heed()
