"""An event loop in which time passes only while all tasks wait: a test of days takes milliseconds."""

import asyncio
import functools
import selectors
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime, timedelta
from typing import Any, ParamSpec

P = ParamSpec("P")

START = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


class _Selector(selectors.DefaultSelector):
    """Instead of waiting for a timer, it advances the time."""

    def __init__(self) -> None:
        super().__init__()
        self.passed = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "all tasks wait for something that cannot happen"
            self.passed += timeout
        return ready


class FakeTimeLoop(asyncio.SelectorEventLoop):
    """For code that uses neither threads nor the network: those take real time."""

    def __init__(self) -> None:
        self._selector_in_fake_time = _Selector()
        super().__init__(self._selector_in_fake_time)

    def time(self) -> float:
        return self._selector_in_fake_time.passed


def now() -> datetime:
    """The time in the running ``FakeTimeLoop``: a clock for the code under test."""
    return START + timedelta(seconds=asyncio.get_running_loop().time())


def in_fake_time(test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Run an asynchronous test in a loop of its own, in fake time."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        with asyncio.Runner(loop_factory=FakeTimeLoop) as runner:
            runner.run(test(*args, **kwargs))

    return run
