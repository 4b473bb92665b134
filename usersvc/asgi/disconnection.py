"""Cancelling what a handler waits for when its client disconnects."""

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from typing import cast

from aiohttp import ClientConnectionResetError, web

from usersvc.asgi.exchange import Exchange


@contextmanager
def cancel_on_disconnect(request: web.Request) -> Generator[None]:
    """Give up what is awaited within as soon as the client disconnects; only then is its going looked out for.

    For long waits of few handlers, where `handler_cancellation` would have every request pay, and would break off what
    had better come to its end. Within a request of aiohttp's own server it does nothing: that has a setting of its own.

    Raises:
        ConnectionResetError: the client has gone.
    """
    exchange: object = request.writer
    if not isinstance(exchange, Exchange):
        yield
        return
    task = cast("asyncio.Task[object]", asyncio.current_task())
    others = task.cancelling()
    gone = False

    def give_up() -> None:
        nonlocal gone
        gone = True
        task.cancel()

    exchange.watch()
    if exchange.disconnected:
        raise ClientConnectionResetError("The client has disconnected")
    exchange.on_lost += (give_up,)
    try:
        yield
    except asyncio.CancelledError as error:
        # Not if somebody else, a server that stops perhaps, has cancelled the task as well.
        if gone and task.uncancel() <= others:
            raise ClientConnectionResetError("The client has disconnected") from error
        raise
    except BaseException:
        if gone:
            task.uncancel()
        raise
    finally:
        exchange.on_lost = tuple(other for other in exchange.on_lost if other is not give_up)
