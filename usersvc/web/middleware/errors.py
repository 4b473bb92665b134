"""Turns every failure into a problem document."""

import asyncio

from aiohttp import web
from aiohttp.typedefs import Handler

from usersvc.web.middleware.request_log import REQUEST_ID
from usersvc.web.problems import Stopping, problem_response


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Respond to a failure with its problem document, unless the client has disconnected."""
    try:
        return await handler(request)
    except asyncio.CancelledError:
        # The server is stopping and does not wait for the request any longer; the client can still get a response.
        return problem_response(Stopping(), request[REQUEST_ID])
    except Exception as error:
        if isinstance(error, ConnectionError) and request.transport is None:
            raise
        return problem_response(error, request[REQUEST_ID])
