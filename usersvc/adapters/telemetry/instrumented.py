"""A wrapper that reports every call of a port to metrics or traces, but not its arguments."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import TypeVar, cast

P = TypeVar("P")


def observed(port: P, around: Callable[[str], AbstractContextManager[object]], *, prefix: str = "") -> P:
    """The same port, with ``around(operation)`` entered for each call; all its methods are coroutine functions.

    An operation has the name of the method, with ``prefix`` before it.
    """

    def instrumented(name: str) -> Callable[..., Awaitable[object]]:
        method, operation = getattr(port, name), f"{prefix}{name}"

        async def call(*args: object, **kwargs: object) -> object:
            with around(operation):
                return await method(*args, **kwargs)

        return call

    names = [name for name in dir(port) if not name.startswith("_") and callable(getattr(port, name))]
    return cast("P", SimpleNamespace(**{name: instrumented(name) for name in names}))
