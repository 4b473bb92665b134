"""A wrapper that reports every call of a port to metrics or traces, but not its arguments."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import TypeVar, cast

P = TypeVar("P")

Around = Callable[[str], AbstractContextManager[object]]
"""Given the name of an operation: a context manager that is entered around one call of it."""


def observed(port: P, around: Around, *, prefix: str = "") -> P:
    """The same port, with ``around`` entered for each call.

    Args:
        port: an object all of whose public methods are coroutine functions.
        around: a method of ``PrometheusMetrics`` or ``OpenTelemetryTracing``.
        prefix: of the names of operations, which are those of the port's methods.
    """
    return cast("P", _InstrumentedPort(port, around, prefix))


class _InstrumentedPort:
    def __init__(self, port: object, around: Around, prefix: str) -> None:
        self._port, self._around, self._prefix = port, around, prefix

    def __getattr__(self, name: str) -> Callable[..., Awaitable[object]]:
        method, around, operation = getattr(self._port, name), self._around, f"{self._prefix}{name}"

        async def call(*args: object, **kwargs: object) -> object:
            with around(operation):
                return await method(*args, **kwargs)

        # The next look-up finds it without __getattr__.
        setattr(self, name, call)
        return call
