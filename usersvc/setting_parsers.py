"""Parsers of settings, each with the words for what it accepts."""

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeAlias, TypeVar

from usersvc.adapters.server_url import SmtpServer, check_postgres_url, check_redis_url
from usersvc.domain.email_address import EmailAddress
from usersvc.domain.errors import ValidationFailed

if TYPE_CHECKING:
    from limits import RateLimitItem

T_co = TypeVar("T_co", covariant=True)

MIN_PEPPER_LENGTH = 16
MIN_TOKEN_LENGTH = 22
"""Characters of the admin token if other hosts can connect: 22 of base64 hold 128 bits (OWASP ASVS 5.0, 11.5.1)."""
LAST_PORT = 65535
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Rate: TypeAlias = "RateLimitItem | None"


class MemoryDatabase:
    """``memory://``."""

    def __str__(self) -> str:
        return "in memory: users are lost when the service stops"


@dataclass(frozen=True, slots=True)
class SqliteDatabase:
    """``sqlite:///...``: a file."""

    path: Path

    def __str__(self) -> str:
        return str(self.path.absolute())


@dataclass(frozen=True, slots=True)
class PostgresDatabase:
    """``postgresql://...``: a server, or several of which one accepts writes."""

    url: str = field(repr=False)
    """A secret: it names the server and may hold a password."""

    def __str__(self) -> str:
        return "PostgreSQL"


Database = MemoryDatabase | SqliteDatabase | PostgresDatabase


@dataclass(frozen=True, slots=True)
class Parser(Generic[T_co]):
    """Converts the text of a variable."""

    accepts: str
    """Completes the sentence "USERSVC_... accepts"."""
    parse: Callable[[str], T_co]
    """Raises ValueError for text that is not accepted."""
    accepts_empty: bool = False
    """Whether an empty variable has a meaning other than the default."""


def _matching(pattern: str, text: str) -> re.Match[str]:
    match = re.fullmatch(pattern, text, re.ASCII)
    if match is None:
        raise ValueError
    return match


def integer(minimum: int, maximum: int) -> Parser[int]:
    """A parser of decimal ASCII digits."""

    def parse(text: str) -> int:
        # int() would also take "1_0", " 10 " and digits of other scripts.
        number = int(_matching("[0-9]{1,9}", text)[0])
        if not minimum <= number <= maximum:
            raise ValueError
        return number

    return Parser(f"a whole number from {minimum} to {maximum}", parse)


def one_of(*choices: str) -> Parser[str]:
    """A parser of a word in any case."""
    return Parser(
        f"{', '.join(choices[:-1])} or {choices[-1]}", lambda text: _matching("|".join(choices), text.lower())[0]
    )


def _database(url: str) -> Database:
    if url == "memory://":
        return MemoryDatabase()
    if url.startswith(("postgresql:", "postgres:")):
        check_postgres_url(url)
        return PostgresDatabase(url)
    path = url.removeprefix("sqlite:///")
    # For SQLite, a colon and a question mark have meanings beyond a file's name.
    if path == url or not Path(path).name or path.startswith((":", "file:")) or "?" in path or "\0" in path:
        raise ValueError
    return SqliteDatabase(Path(path))


def _redis_url(url: str) -> str:
    check_redis_url(url)
    return url


def _address(text: str) -> str:
    try:
        return EmailAddress(text).typed
    except ValidationFailed:
        raise ValueError from None


def _pepper(text: str) -> bytes:
    if len(text) < MIN_PEPPER_LENGTH:
        raise ValueError
    return text.encode("utf-8", "surrogateescape")


def _rate(text: str) -> Rate:
    if not text:
        return None
    from limits import parse  # noqa: PLC0415  # slow to import, and not needed without a limit

    # The library also accepts several rates, and numbers that it cannot calculate with.
    _matching(r"[1-9][0-9]{0,5}(/| ?per ?)([1-9][0-9]{0,2} ?)?(second|minute|hour|day)s?", text.strip())
    return parse(text)


def _networks(text: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(each.strip()) for each in text.split(",")) if text else ()


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(each.strip() for each in text.split(",")) if text else ()
    for origin in origins:
        # As browsers serialize it, since it is compared as text: lower case, no path, no default port.
        match = _matching(r"(https?)://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::([1-9][0-9]{0,4}))?", origin)
        if match.groups() in {("http", "80"), ("https", "443")} or int(match[2] or 0) > LAST_PORT:
            raise ValueError
    return origins


HOST = Parser("an address or a name of this machine", str)
DATABASE_URL = Parser(
    "sqlite:///relative/file, sqlite:////absolute/file, memory:// or postgresql://user:password@host:port/database "
    "(with percent-encoded parts, several hosts as host1,host2 and options as ?sslmode=verify-full)",
    _database,
)
REDIS_URL = Parser("redis://host or rediss://host, with user:password@, :port and /database as needed", _redis_url)
SMTP_URL = Parser(
    "smtp://host, smtps://host or smtp+starttls://host, with user:password@ and :port as needed", SmtpServer.from_url
)
ADDRESS = Parser("an email address, as alice@example.com", _address)
PEPPER = Parser(f"a secret of at least {MIN_PEPPER_LENGTH} characters", _pepper)
# What a client can send in a header. RFC 6750, section 2.1, has fewer characters; more do no harm.
TOKEN = Parser(
    f"a secret of visible ASCII characters, at least {MIN_TOKEN_LENGTH} unless USERSVC_HOST is a loopback address",
    lambda text: _matching(r"[!-~]+", text)[0],
)
RATE = Parser("a rate as 60/minute or 1000 per 2 hours, or nothing for no limit", _rate, accepts_empty=True)
NETWORKS = Parser("addresses and networks separated by commas, as 10.0.0.0/8,::1", _networks)
ORIGINS = Parser("origins separated by commas, as https://app.example.com,http://localhost:3000", _origins)
