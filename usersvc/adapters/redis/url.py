"""Which ``redis://`` URLs are accepted; it does not need the client library."""

import re
from urllib.parse import urlsplit

from usersvc.adapters.server_url import one_url_per_host


def check_redis_url(url: str) -> None:
    """Check a ``redis://`` or ``rediss://`` URL with one host and perhaps the number of a database.

    Raises:
        ValueError: it is malformed, or has options.
    """
    [only] = one_url_per_host(url)
    parts = urlsplit(only)
    if parts.scheme not in {"redis", "rediss"} or not parts.hostname or parts.query:
        raise ValueError
    if not re.fullmatch(r"/?|/[0-9]{1,5}", parts.path, re.ASCII):
        raise ValueError
