"""aiohttp middlewares, one concern each."""

from collections.abc import Mapping
from typing import Any

from aiohttp.typedefs import Handler


def metadata(handler: Handler) -> Mapping[str, Any]:
    """The arguments of a handler's ``docs`` decorator (aiohttp-apispec); empty without the decorator."""
    # aiohttp copies the attributes of a handler to the middlewares around it.
    found: Mapping[str, Any] = getattr(handler, "__apispec__", {})
    return found
