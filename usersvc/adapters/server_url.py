"""URLs of servers, accepted or refused alike by every patch release of Python. No driver is imported here."""

import re
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv6Address
from typing import Self
from urllib.parse import parse_qsl, unquote, urlsplit

SSL_MODES = {"disable", "allow", "prefer", "require", "verify-ca", "verify-full"}

# RFC 3986, section 3: brackets enclose an IPv6 address and occur nowhere else in the authority.
_URL = re.compile(
    r"(?P<before>[A-Za-z][A-Za-z0-9+.-]*://(?:[^@/?#\[\]]*@)?)(?P<hosts>[^@/?#]*)(?P<after>(?:/[^?#]*)?(?:\?[^#]*)?)"
)
_HOST = re.compile(r"(?:\[(?P<ipv6>.+)\]|[^:\[\]]*)(?::[0-9]{1,5})?", re.ASCII)


def one_url_per_host(url: str) -> list[str]:
    """Split a URL with several hosts, separated by commas, into one URL per host, which ``urlsplit`` can parse.

    Brackets are checked here because ``urlsplit`` differs between releases (CVE-2024-11168, CVE-2025-0938).

    Raises:
        ValueError: the URL is malformed, or contains a fragment, a space or a character that is not printable.
    """
    parts = _URL.fullmatch(url)
    # urlsplit removes some control characters; bytes that are not UTF-8 are not printable either.
    if parts is None or not url.isprintable() or " " in url:
        raise ValueError
    hosts = parts["hosts"].split(",")
    for host in hosts:
        match = _HOST.fullmatch(host)
        if match is None:
            raise ValueError
        if match["ipv6"] is not None:
            IPv6Address(match["ipv6"])
    urls = [f"{parts['before']}{host}{parts['after']}" for host in hosts]
    # urlsplit raises ValueError for a port above 65535, and for characters that become delimiters in NFKC.
    if any(urlsplit(each).port == 0 for each in urls):
        raise ValueError
    return urls


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


def check_redis_url(url: str) -> None:
    """Check a ``redis://`` or ``rediss://`` URL with one host and optionally the number of a database.

    Raises:
        ValueError: it is malformed, or has options.
    """
    [only] = one_url_per_host(url)
    parts = urlsplit(only)
    if parts.scheme not in {"redis", "rediss"} or not parts.hostname or parts.query:
        raise ValueError
    if not re.fullmatch(r"/?|/[0-9]{1,5}", parts.path, re.ASCII):
        raise ValueError


class Security(Enum):
    """How the connection is protected; the value is the scheme of the URL."""

    NONE = "smtp"
    TLS = "smtps"
    """Implicit TLS (RFC 8314)."""
    STARTTLS = "smtp+starttls"
    """Required (RFC 3207): nothing is sent without it."""


_SMTP_PORTS = {Security.NONE: 25, Security.TLS: 465, Security.STARTTLS: 587}


@dataclass(frozen=True, slots=True)
class SmtpServer:
    """A server that accepts mail for delivery, and the login."""

    host: str
    port: int
    security: Security = Security.NONE
    user: str | None = None
    password: str | None = field(default=None, repr=False)

    @classmethod
    def from_url(cls, url: str) -> Self:
        """Parse ``smtp://``, ``smtps://`` or ``smtp+starttls://``; user and password are percent-encoded.

        Raises:
            ValueError: the URL is malformed, or has a user without a password, a path or a query.
        """
        [only] = one_url_per_host(url)
        parts = urlsplit(only)
        security = Security(parts.scheme)
        if not parts.hostname or parts.path not in {"", "/"} or parts.query:
            raise ValueError
        if bool(parts.username) != bool(parts.password):
            raise ValueError
        user, password = (unquote(part) if part else None for part in (parts.username, parts.password))
        return cls(parts.hostname, parts.port or _SMTP_PORTS[security], security, user, password)

    @property
    def exposes_password(self) -> bool:
        """Whether the password is sent over an unencrypted connection."""
        return self.user is not None and self.security is Security.NONE
