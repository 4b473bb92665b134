"""Runs awaitables in a context of their own, as a task would, at a fraction of a task's cost."""

import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextvars import Context
from typing import Any, TypeVar, cast

_T = TypeVar("_T")


async def run_in_context(context: Context, awaitable: Awaitable[_T]) -> _T:
    """Await something in a context of its own."""
    coroutine = cast("Coroutine[Any, Any, _T]", awaitable)
    if not isinstance(awaitable, types.CoroutineType):
        coroutine = as_coroutine(awaitable)
    try:
        future = context.run(coroutine.send, None)
    except StopIteration as done:
        result: _T = done.value
        return result
    return await resume_in_context(context, coroutine, future)


@types.coroutine
def resume_in_context(context: Context, coroutine: Coroutine[Any, Any, _T], future: Any) -> Generator[Any, Any, _T]:
    """Await the rest of a coroutine that was started with `context.run(coroutine.send, None)` and yielded a future."""
    step: Callable[[Any], Any]
    while True:
        try:
            step, argument = coroutine.send, (yield future)
        except BaseException as error:  # the coroutine must see cancellation and the end of this generator
            step, argument = coroutine.throw, error
        try:
            future = context.run(step, argument)
        except StopIteration as done:
            result: _T = done.value
            return result
        finally:
            argument = None  # breaks the cycle of an error and this frame


async def as_coroutine(awaitable: Awaitable[_T]) -> _T:
    """Make a coroutine of any awaitable."""
    return await awaitable
