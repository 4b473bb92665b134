"""Content negotiation by ``Accept`` (RFC 9110, section 12.5.1)."""

import re
from collections.abc import Sequence
from functools import partial

from aiohttp import web
from aiohttp.typedefs import Handler

from usersvc.web.middleware import metadata
from usersvc.web.problems import RequestRefused

MEDIA_TYPE = web.RequestKey("MEDIA_TYPE", str)
"""The media type of the resource that the client prefers."""

MAX_ACCEPT = 1024
"""Characters of an ``Accept`` header that are read: browsers send under 200, and parsing 32 KiB is slow."""


@web.middleware
async def content_negotiation(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Choose a media type for the response; refuse the request if ``Accept`` allows none that the resource has."""
    offered: Sequence[str] = metadata(handler).get("produces", ())
    if offered:
        chosen = offered[0]
        accept = ",".join(request.headers.getall("Accept", ()))
        if accept:
            # The first of equals, which is the default of the resource.
            chosen = max(offered, key=partial(weight, accept))
            if weight(accept, chosen) == 0:
                raise RequestRefused("not-acceptable", f"This resource is available as {', '.join(offered)} only.")
        request[MEDIA_TYPE] = chosen
    return await handler(request)


def weight(accept: str, media_type: str) -> float:
    """The weight of a media type in an ``Accept`` header, from 0 (refused) to 1, by the most specific matching range.

    Invalid ranges and those beyond ``MAX_ACCEPT`` are ignored; a header without any range accepts everything.
    """
    if len(accept) > MAX_ACCEPT:
        # Without the range that is cut.
        accept = accept[:MAX_ACCEPT].rpartition(",")[0]
    weights: dict[str, float] = {}
    for element in accept.lower().split(","):
        media_range, *parameters = (part.strip() for part in element.split(";"))
        if "/" in media_range:
            given = next((part[2:] for part in parameters if part.startswith("q=")), "1")
            weights[media_range] = float(given) if re.fullmatch(r"[01](\.[0-9]{0,3})?", given) else 1.0
    matching = (media_type, f"{media_type.partition('/')[0]}/*", "*/*")
    return next((weights[match] for match in matching if match in weights), 0.0 if weights else 1.0)
