"""An event loop in which time passes only when everybody waits: days of it in milliseconds, with no test asleep."""

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, ParamSpec

P = ParamSpec("P")

START = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


class _Selector(selectors.DefaultSelector):
    """Instead of waiting for a timer, it moves the time on to it."""

    def __init__(self) -> None:
        super().__init__()
        self.passed = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise AssertionError("everybody waits for something that nothing will bring about")
            self.passed += timeout
        return ready


class FakeTimeLoop(asyncio.SelectorEventLoop):
    """For code that neither uses threads nor the network: those take real time."""

    def __init__(self) -> None:
        self._instead = _Selector()
        super().__init__(self._instead)

    def time(self) -> float:
        return self._instead.passed


def now() -> datetime:
    """The time in the running ``FakeTimeLoop``, for whoever takes a clock."""
    return START + timedelta(seconds=asyncio.get_running_loop().time())


def in_fake_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an asynchronous test in a loop of its own, in fake time."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=FakeTimeLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run
