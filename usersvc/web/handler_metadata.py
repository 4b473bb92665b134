"""What the decorators of aiohttp-apispec recorded about a handler."""

from collections.abc import Mapping
from typing import Any

from aiohttp import web


def metadata(request: web.Request) -> Mapping[str, Any]:
    """The arguments of the ``docs`` decorator of the handler of a request; empty without the decorator."""
    found: Mapping[str, Any] = getattr(request.match_info.handler, "__apispec__", {})
    return found
