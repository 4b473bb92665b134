"""The interface of metrics and traces, and a wrapper that reports every call of a port to them."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar, cast

P = TypeVar("P")

Around = Callable[[str], AbstractContextManager[None]]
"""Given the name of an operation: a context manager that is entered around one call of it."""


class Instrument(Protocol):
    """Observes how long calls take and how they end, but not their arguments."""

    def storage_call(self, operation: str, /) -> AbstractContextManager[None]:
        """Around a call of a storage port; operations of ``Outbox`` are named ``outbox_...``."""
        ...

    def hashing(self, operation: str, /) -> AbstractContextManager[None]:
        """Around ``hash`` or ``verify`` of a ``PasswordHasher``."""
        ...

    def notification(self, operation: str, /) -> AbstractContextManager[None]:
        """Around an attempt of a ``Notifier`` to send a mail; ``request_context`` is the request that led to it."""
        ...


def observed(port: P, around: Around, *, prefix: str = "") -> P:
    """The same port, with ``around`` entered for each call.

    Args:
        port: an object all of whose public methods are coroutine functions.
        around: a method of an ``Instrument``.
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
