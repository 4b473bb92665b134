"""The settings, read once from the environment and from a ``.env`` file."""

import io
import ipaddress
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from usersvc.adapters.bcrypt.hasher import MAX_COST, MIN_COST
from usersvc.adapters.postgres.url import check_postgres_url
from usersvc.adapters.redis.url import check_redis_url
from usersvc.domain.errors import ValidationFailed
from usersvc.domain.user import EmailAddress, Password

if TYPE_CHECKING:
    from limits import RateLimitItem

    from usersvc.adapters.mail.smtp_notifier import SmtpServer

T = TypeVar("T")

MIN_PEPPER_LENGTH = 16
MIN_TOKEN_LENGTH = 22
"""Characters of the admin token if other hosts can connect: 22 of base64 hold 128 bits (OWASP ASVS 5.0, 11.5.1)."""
LAST_PORT = 65535
DEFAULT_RATE = "60/minute"
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

TOKEN_FORM = (
    f"a secret of visible ASCII characters, at least {MIN_TOKEN_LENGTH} unless USERSVC_HOST is a loopback address"
)
SMTP_URL_FORMS = "smtp://host, smtps://host or smtp+starttls://host, with user:password@ and :port as needed"

SECRETS = ("DATABASE_URL", "PASSWORD_PEPPER", "ADMIN_TOKEN", "RATE_LIMIT_STORE", "SMTP_URL")
"""Those that are or may hold a secret: each may be the text of a file, which a variable with ``_FILE`` behind names."""

REDIS_URL_FORMS = "redis://host or rediss://host, with user:password@, :port and /database as needed"
DATABASE_URL_FORMS = (
    "sqlite:///relative/file, sqlite:////absolute/file, memory:// or postgresql://user:password@host:port/database "
    "(with percent-encoded parts, several hosts as host1,host2 and options as ?sslmode=verify-full)"
)

EXTRAS = {
    "postgres": ("DATABASE_URL", "postgresql://", "asyncpg"),
    "redis": ("RATE_LIMIT_STORE", "a URL", "redis"),
    "otel": ("TRACING", "otlp", "opentelemetry.exporter.otlp.proto.http"),
}
"""By the name of the extra: the setting, its value that needs the extra, and a module that the extra installs."""


def cores() -> int:
    """Those that this process may use, which in a container may be fewer than there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class InvalidSetting(Exception):
    """A setting has a value that it does not accept; the text names both and never repeats the value."""


class MemoryDatabase:
    """``memory://``: users who may be forgotten."""

    def __str__(self) -> str:
        return "in memory: users are forgotten when the service stops"


@dataclass(frozen=True, slots=True)
class SqliteDatabase:
    """``sqlite:///...``: one file."""

    path: Path

    def __str__(self) -> str:
        return str(self.path.absolute())


@dataclass(frozen=True, slots=True)
class PostgresDatabase:
    """``postgresql://...``: a server, or several of which one can be written to."""

    url: str = field(repr=False)

    def __str__(self) -> str:
        # The whole URL is a secret: it tells where the server is, and may hold a password.
        return "PostgreSQL"


Database = MemoryDatabase | SqliteDatabase | PostgresDatabase


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that can be set, with its default."""

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    """Processes."""
    database: Database = field(default=SqliteDatabase(Path("usersvc.db")))
    database_pool_size: int = 5
    """Connections to PostgreSQL in each process, beside the one on which it listens."""
    bcrypt_cost: int = 12
    hash_workers: int = field(default_factory=cores)
    """Threads in each process."""
    hash_queue: int = 64
    """How many registrations may wait for a thread, in each process."""
    password_min_length: int = Password.MIN_LENGTH
    """Code points."""
    password_pepper: bytes | None = field(default=None, repr=False)
    admin_token: str | None = field(default=None, repr=False)
    """Who sends it may read the users; without one, anybody may."""
    register_rate: "RateLimitItem | None" = field(default_factory=lambda: _rate(DEFAULT_RATE))
    """Registrations of one client address; None: as many as it likes."""
    rate_limit_store: str | None = field(default=None, repr=False)
    """The URL of the Redis in which processes count together; None: each counts by itself. It may hold a password."""
    trusted_proxies: tuple[Network, ...] = ()
    """Whose ``X-Forwarded-For`` is believed."""
    cors_origins: tuple[str, ...] = ()
    """Whose pages a browser lets use the service (serialized origins, RFC 6454, section 6.2)."""
    max_connections: int = 1000
    """Open at once, in each process."""
    smtp: "SmtpServer | None" = None
    mail_from: str = ""
    """Whom mails are from; an address, given whenever ``smtp`` is."""
    max_body_bytes: int = 16384
    log_level: str = "info"
    log_format: str = "console"
    tracing: str = "off"
    """``otlp``: spans are sent, as the variables ``OTEL_...`` say."""
    without_effect: tuple[str, ...] = ()
    """Names of variables that are set and that this version does not heed."""

    @classmethod
    def from_environment(
        cls,
        environ: Mapping[str, str] | None = None,
        *,
        check_extras: bool = True,
        told: Callable[[str, object], None] = lambda name, value: None,
    ) -> "Settings":
        """Read the settings.

        Args:
            environ: the variables; by default those of the process, over those of a ``.env`` file in its folder.
            check_extras: whether an optional dependency that is needed has to be installed.
            told: called for each variable there is, with the value that was read or the default.

        Raises:
            InvalidSetting: a value is not accepted, or needs an optional dependency that is not installed.
        """
        if environ is None:
            # Without interpolation, so that a secret may hold a dollar sign.
            environ = stored() | dict(os.environ)
        environ = _with_files(environ)
        defaults = cls(register_rate=None)

        def read(name: str, accepts: str, parse: Callable[[str], T], default: T) -> T:
            known.add(f"USERSVC_{name}")
            text = environ.get(f"USERSVC_{name}", "")
            try:
                value = parse(text) if text else default
            except ValueError:
                raise InvalidSetting(f"USERSVC_{name} accepts {accepts}.") from None
            told(f"USERSVC_{name}", value)
            return value

        known: set[str] = set()

        def number(name: str, least: int, most: int, default: int) -> int:
            return read(name, f"a whole number from {least} to {most}", _between(least, most), default)

        settings = cls(
            host=read("HOST", "an address or a name of this machine", str, defaults.host),
            port=number("PORT", 0, LAST_PORT, defaults.port),
            workers=number("WORKERS", 1, 256, defaults.workers),
            database=read(
                "DATABASE_URL",
                DATABASE_URL_FORMS,
                _database,
                defaults.database,
            ),
            database_pool_size=number("DATABASE_POOL_SIZE", 1, 1000, defaults.database_pool_size),
            bcrypt_cost=number("BCRYPT_COST", MIN_COST, MAX_COST, defaults.bcrypt_cost),
            # In each process, since a single one may have all who wait: connections are not shared out evenly.
            hash_workers=number("HASH_WORKERS", 1, 256, min(256, cores())),
            hash_queue=number("HASH_QUEUE", 0, 10000, defaults.hash_queue),
            password_min_length=number("PASSWORD_MIN_LENGTH", Password.MIN_LENGTH, 64, defaults.password_min_length),
            password_pepper=read(
                "PASSWORD_PEPPER", f"a secret of at least {MIN_PEPPER_LENGTH} characters", _pepper, None
            ),
            admin_token=read(
                "ADMIN_TOKEN",
                TOKEN_FORM,
                _token,
                None,
            ),
            register_rate=read(
                "REGISTER_RATE",
                "a rate as 60/minute or 1000 per 2 hours, or nothing for no limit",
                _rate,
                # Empty means none here, and is not the same as not set.
                None if environ.get("USERSVC_REGISTER_RATE") == "" else _rate(DEFAULT_RATE),
            ),
            rate_limit_store=read("RATE_LIMIT_STORE", REDIS_URL_FORMS, _redis, None),
            trusted_proxies=read(
                "TRUSTED_PROXIES",
                "addresses and networks separated by commas, as 10.0.0.0/8,::1",
                _networks,
                defaults.trusted_proxies,
            ),
            cors_origins=read(
                "CORS_ORIGINS",
                "origins separated by commas, as https://app.example.com,http://localhost:3000",
                _origins,
                defaults.cors_origins,
            ),
            max_connections=number("MAX_CONNECTIONS", 1, 100000, defaults.max_connections),
            smtp=read("SMTP_URL", SMTP_URL_FORMS, _smtp, None),
            mail_from=read("MAIL_FROM", "an email address, as alice@example.com", _address, defaults.mail_from),
            max_body_bytes=number("MAX_BODY_BYTES", 1024, 16 * 1024 * 1024, defaults.max_body_bytes),
            log_level=read("LOG_LEVEL", "debug, info, warning, error or critical", _log_level, defaults.log_level),
            log_format=read("LOG_FORMAT", "console or json", _one_of("console", "json"), defaults.log_format),
            tracing=read("TRACING", "off or otlp", _one_of("off", "otlp"), defaults.tracing),
            without_effect=tuple(sorted(name for name in environ if name.startswith("USERSVC_") and name not in known)),
        )
        if isinstance(settings.database, MemoryDatabase) and settings.workers > 1:
            raise InvalidSetting("USERSVC_WORKERS accepts 1 with memory://: processes do not share their memory.")
        if settings.admin_token and len(settings.admin_token) < MIN_TOKEN_LENGTH and not _is_loopback(settings.host):
            raise InvalidSetting(f"USERSVC_ADMIN_TOKEN accepts {TOKEN_FORM}.")
        if settings.smtp is not None and not settings.mail_from:
            raise InvalidSetting("USERSVC_MAIL_FROM accepts an email address, and is needed with USERSVC_SMTP_URL.")
        for extra in settings.extras if check_extras else ():
            name, accepts, module = EXTRAS[extra]
            if not _installed(module):
                raise InvalidSetting(
                    f"USERSVC_{name} accepts {accepts} only with the extra {extra}: {_command_for(extra)}."
                )
        return settings

    @property
    def extras(self) -> tuple[str, ...]:
        """The names of the optional dependencies that these settings need."""
        needed = {
            "postgres": isinstance(self.database, PostgresDatabase),
            "redis": self.rate_limit_store is not None,
            "otel": self.tracing != "off",
        }
        return tuple(extra for extra, is_needed in needed.items() if is_needed)


def _command_for(extra: str) -> str:
    """What installs an extra: a checkout has a locked environment of its own, which has no pip."""
    is_checkout = Path(__file__).parents[1].joinpath("Makefile").exists()
    return "make extras" if is_checkout else f"pip install 'usersvc[{extra}]'"


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        # Nor is what it is a part of.
        return False


def stored() -> dict[str, str]:
    """What the file ``.env`` in this folder holds.

    Raises:
        InvalidSetting: it cannot be read, has a line that sets nothing, or is no text.
    """
    try:
        # With "-sig", a mark at the beginning, as some editors leave one, is no part of the first name.
        text = Path(".env").read_text("utf-8-sig")
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InvalidSetting(f".env cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError:
        raise InvalidSetting(".env accepts lines NAME=value in UTF-8.") from None
    from dotenv.parser import parse_stream  # noqa: PLC0415  # for those who have the file

    lines = list(parse_stream(io.StringIO(text)))
    for line in lines:
        if line.error or ((line.key or "").startswith("USERSVC_") and line.value is None):
            raise InvalidSetting(f".env accepts lines NAME=value in UTF-8; see its line {line.original.line}.")
    # Read without interpolation, so that a secret may hold a dollar sign.
    return {line.key: line.value for line in lines if line.key is not None and line.value is not None}


def _with_files(environ: Mapping[str, str]) -> dict[str, str]:
    """The variables, and beside them the secrets that are in files.

    Raises:
        InvalidSetting: a file cannot be read or is empty, or the secret is set in both ways.
    """
    variables = dict(environ)
    for secret in SECRETS:
        name = f"USERSVC_{secret}"
        file = variables.pop(f"{name}_FILE", "")
        if not file:
            continue
        if variables.get(name):
            raise InvalidSetting(f"{name}_FILE accepts a file only when {name} is not set.")
        try:
            # Bytes that are no UTF-8 as they come from the environment, too.
            text = Path(file).read_text("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r")
        except (OSError, ValueError):
            text = ""
        if not text:
            # Nothing would be as good as no secret, and nobody would notice.
            raise InvalidSetting(f"{name}_FILE accepts the path of a file that can be read and is not empty.")
        variables[name] = text
    return variables


def _between(least: int, most: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        # int() would also take "1_0", " 10 " and digits of other scripts.
        if not (text.isascii() and text.isdecimal() and len(text) <= len(str(most)) and least <= int(text) <= most):
            raise ValueError
        return int(text)

    return parse


def _one_of(*choices: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text.lower() not in choices:
            raise ValueError
        return text.lower()

    return parse


_log_level = _one_of("debug", "info", "warning", "error", "critical")


def _database(url: str) -> Database:
    if url == "memory://":
        return MemoryDatabase()
    if url.startswith(("postgresql:", "postgres:")):
        check_postgres_url(url)
        return PostgresDatabase(url)
    path = url.removeprefix("sqlite:///")
    # SQLite gives names with a colon or a question mark meanings that a file does not have.
    if path == url or not Path(path).name or path.startswith((":", "file:")) or "?" in path or "\0" in path:
        raise ValueError
    return SqliteDatabase(Path(path))


def _smtp(url: str) -> "SmtpServer":
    from usersvc.adapters.mail.smtp_notifier import SmtpServer  # noqa: PLC0415  # slow to import, needed only to send mail

    return SmtpServer.from_url(url)


def _redis(url: str) -> str:
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


def _token(text: str) -> str:
    # What a client can send in a header. RFC 6750, section 2.1, has fewer characters; more do no harm.
    if not re.fullmatch(r"[!-~]+", text):
        raise ValueError
    return text


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _rate(text: str) -> "RateLimitItem":
    from limits import parse  # noqa: PLC0415  # slow to import, and of no use without a limit

    # The library also takes several rates, and figures that it then cannot reckon with.
    if not re.fullmatch(
        r"[1-9][0-9]{0,5}(/| ?per ?)([1-9][0-9]{0,2} ?)?(second|minute|hour|day)s?", text.strip(), re.ASCII
    ):
        raise ValueError
    return parse(text)


def _networks(text: str) -> tuple[Network, ...]:
    return tuple(ipaddress.ip_network(each.strip()) for each in text.split(","))


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(each.strip() for each in text.split(","))
    for origin in origins:
        # Exactly as browsers write it, since it is compared as text: small letters, no path, no default port.
        match = re.fullmatch(r"(https?)://(?:[a-z0-9.-]+|\[[0-9a-f:.]+\])(?::([1-9][0-9]{0,4}))?", origin, re.ASCII)
        if (
            match is None
            or (match[1], match[2]) in {("http", "80"), ("https", "443")}
            or int(match[2] or 0) > LAST_PORT
        ):
            raise ValueError
    return origins
