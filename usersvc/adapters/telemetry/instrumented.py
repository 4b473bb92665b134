"""A wrapper that reports every call of a port to metrics or traces, but not its arguments."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import TypeVar, cast

P = TypeVar("P")


def observed(port: P, around: Callable[[str], AbstractContextManager[object]], *, prefix: str = "") -> P:
    """The same port, with ``around`` entered for each call.

    Args:
        port: an object all of whose public methods are coroutine functions.
        around: given the name of an operation, returns a context manager to enter around one call of it.
        prefix: of the names of operations, which are those of the port's methods.
    """

    def instrumented(name: str) -> Callable[..., Awaitable[object]]:
        method, operation = getattr(port, name), f"{prefix}{name}"

        async def call(*args: object, **kwargs: object) -> object:
            with around(operation):
                return await method(*args, **kwargs)

        return call

    names = [name for name in dir(port) if not name.startswith("_") and callable(getattr(port, name))]
    return cast("P", SimpleNamespace(**{name: instrumented(name) for name in names}))
