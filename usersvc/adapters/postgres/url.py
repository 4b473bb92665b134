"""Which ``postgresql://`` URLs are accepted; it does not need the driver."""

import re
from urllib.parse import parse_qsl, urlsplit

from usersvc.adapters.server_url import one_url_per_host

SSL_MODES = {"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}


def check_postgres_url(url: str) -> None:
    """Check a connection URI (PostgreSQL, "Connection URIs"), which may name several hosts.

    Raises:
        ValueError: it is malformed, or has an option that this service does not support.
    """
    parts = urlsplit(one_url_per_host(url)[0])
    options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)) if parts.query else {}
    if not re.fullmatch(r"/[^/]+", parts.path) or options.get("sslmode", "prefer") not in SSL_MODES:
        raise ValueError
    # Hosts are tried one after the other, each with its own time-out; the driver would wait for the first that hangs.
    if "," in options.get("host", "") or options.get("target_session_attrs", "read-write") != "read-write":
        raise ValueError
