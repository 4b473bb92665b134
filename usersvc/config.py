"""The settings: one table, read once from the environment and a ``.env`` file."""

import io
import ipaddress
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from importlib.util import find_spec
from itertools import compress
from pathlib import Path
from typing import Any, TypeVar

from usersvc import setting_parsers as parsers
from usersvc.adapters.server_url import SmtpServer
from usersvc.domain.password import Password
from usersvc.setting_parsers import Parser, integer, one_of

T = TypeVar("T")


class InvalidSetting(Exception):
    """A setting has an invalid value; the message names the setting and what it accepts, never the value."""


def cores() -> int:
    """The number of CPUs that this process may use, which may be fewer than the machine has; at most 256."""
    return min(256, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def setting(parser: Parser[T], default: str | None = None, *, name: str | None = None, secret: bool = False) -> T:
    """A field of ``Settings`` with the variable that sets it: ``USERSVC_`` and ``name``, or the field's, in capitals.

    ``default`` is the text that is parsed if the variable is not set or empty; without one, the value is None.
    A ``secret`` is not in the repr, and may be in a file that ``USERSVC_<name>_FILE`` names.
    """
    made: T = field(
        default_factory=lambda: None if default is None else parser.parse(default),
        repr=not secret,
        metadata={"parser": parser, "default": default, "name": name, "is_secret": secret},
    )  # type: ignore[assignment]  # None is the value of a setting without a default
    return made


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings with their defaults: one row each. Counts are for each process."""

    host: str = setting(parsers.HOST, "127.0.0.1")
    port: int = setting(integer(0, parsers.LAST_PORT), "8000")
    workers: int = setting(integer(1, 256), "1")
    database: parsers.Database = setting(parsers.DATABASE_URL, "sqlite:///usersvc.db", name="DATABASE_URL", secret=True)
    database_pool_size: int = setting(integer(1, 1000), "5")
    # The range of the hasher, which is not imported here.
    bcrypt_cost: int = setting(integer(4, 16), "12")
    # All cores in each process: connections are not shared out evenly, so one process may have most of the work.
    hash_workers: int = setting(integer(1, 256), str(cores()))
    hash_queue: int = setting(integer(0, 10000), "64")
    password_min_length: int = setting(integer(Password.MIN_LENGTH, 64), str(Password.MIN_LENGTH))
    password_pepper: bytes | None = setting(parsers.PEPPER, secret=True)
    admin_token: str | None = setting(parsers.TOKEN, secret=True)
    register_rate: parsers.Rate = setting(parsers.RATE, "60/minute")
    rate_limit_store: str | None = setting(parsers.REDIS_URL, secret=True)
    trusted_proxies: tuple[parsers.Network, ...] = setting(parsers.NETWORKS, "")
    cors_origins: tuple[str, ...] = setting(parsers.ORIGINS, "")
    max_connections: int = setting(integer(1, 100000), "1000")
    smtp: SmtpServer | None = setting(parsers.SMTP_URL, name="SMTP_URL", secret=True)
    mail_from: str | None = setting(parsers.ADDRESS)
    max_body_bytes: int = setting(integer(1024, 16 * 1024 * 1024), "16384")
    log_level: str = setting(one_of("debug", "info", "warning", "error", "critical"), "info")
    log_format: str = setting(one_of("console", "json"), "console")
    tracing: str = setting(one_of("off", "otlp"), "off")
    without_effect: tuple[str, ...] = ()
    """Names of variables that begin with ``USERSVC_`` and are not settings of this version."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None, *, check_extras: bool = True) -> "Settings":
        """Read the settings, by default from the variables of the process and, for those not set, of ``.env``.

        Raises ``InvalidSetting`` for a value that is not accepted, or whose extra is missing (with ``check_extras``).
        """
        environ = _with_secret_files(read_dotenv() | dict(os.environ) if environ is None else environ)
        values: dict[str, Any] = {}
        for name, attribute in VARIABLES.items():
            parser: Parser[Any] = attribute.metadata["parser"]
            text = environ.get(name, "")
            if text or (parser.accepts_empty and name in environ):
                try:
                    values[attribute.name] = parser.parse(text)
                except ValueError:
                    raise InvalidSetting(f"{name} accepts {parser.accepts}.") from None
        unknown = sorted(name for name in environ if name.startswith("USERSVC_") and name not in VARIABLES)
        settings = cls(**values, without_effect=tuple(unknown))
        settings._check(check_extras=check_extras)
        return settings

    def _check(self, *, check_extras: bool) -> None:
        """Check what depends on more than one setting, or on what is installed."""
        if isinstance(self.database, parsers.MemoryDatabase) and self.workers > 1:
            raise InvalidSetting("USERSVC_WORKERS accepts 1 with memory://: processes do not share their memory.")
        if self.admin_token and len(self.admin_token) < parsers.MIN_TOKEN_LENGTH and not _is_loopback(self.host):
            raise InvalidSetting(f"USERSVC_ADMIN_TOKEN accepts {parsers.TOKEN.accepts}.")
        if self.smtp is not None and not self.mail_from:
            raise InvalidSetting("USERSVC_MAIL_FROM accepts an email address, and is needed with USERSVC_SMTP_URL.")
        for extra in self.extras if check_extras else ():
            name, accepts, module = EXTRAS[extra]
            if not _is_installed(module):
                raise InvalidSetting(
                    f"USERSVC_{name} accepts {accepts} only with the extra {extra}: "
                    f"pip install 'usersvc[{extra}]', or make extras in a checkout."
                )

    @property
    def extras(self) -> tuple[str, ...]:
        """The names of the optional dependencies that these settings need."""
        # In the order of EXTRAS.
        needed = (isinstance(self.database, parsers.PostgresDatabase), self.rate_limit_store, self.tracing != "off")
        return tuple(compress(EXTRAS, needed))


VARIABLES = {
    f"USERSVC_{each.metadata['name'] or each.name.upper()}": each for each in fields(Settings) if each.metadata
}
"""The field of ``Settings`` that each variable sets."""

SECRETS = tuple(name for name, attribute in VARIABLES.items() if attribute.metadata["is_secret"])
"""The names of the variables that may hold a secret."""

EXTRAS = {
    "postgres": ("DATABASE_URL", "postgresql://", "asyncpg"),
    "redis": ("RATE_LIMIT_STORE", "a URL", "redis"),
    "otel": ("TRACING", "otlp", "opentelemetry.exporter.otlp.proto.http"),
}
"""By the name of the extra: the setting, its value that needs the extra, and a module that the extra installs."""


def _is_installed(module: str) -> bool:
    with suppress(ModuleNotFoundError):  # of a package that contains it
        return find_spec(module) is not None
    return False


def _is_loopback(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host.lower() == "localhost"


def read_dotenv() -> dict[str, str]:
    """The variables in the file ``.env`` of the current folder, without interpolation: a secret may hold a dollar sign.

    A file that cannot be read, is not UTF-8 or has a malformed line raises ``InvalidSetting``.
    """
    try:
        # Some editors begin a file with a byte order mark.
        text = Path(".env").read_text("utf-8-sig")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError):
        raise InvalidSetting(".env accepts a file in UTF-8 that can be read.") from None
    from dotenv.parser import parse_stream  # noqa: PLC0415  # not needed without the file

    lines = list(parse_stream(io.StringIO(text)))
    for line in lines:
        if line.error or ((line.key or "").startswith("USERSVC_") and line.value is None):
            raise InvalidSetting(f".env accepts lines NAME=value; see its line {line.original.line}.")
    return {line.key: line.value for line in lines if line.key is not None and line.value is not None}


def _with_secret_files(environ: Mapping[str, str]) -> dict[str, str]:
    """Set the secrets that variables named ``..._FILE`` have in files."""
    variables = dict(environ)
    for name in SECRETS:
        file = variables.pop(f"{name}_FILE", "")
        if file and variables.get(name):
            raise InvalidSetting(f"{name}_FILE accepts a file only when {name} is not set.")
        if file:
            with suppress(OSError, ValueError):
                # Bytes that are not UTF-8 are read as os.environ reads them.
                variables[name] = Path(file).read_text("utf-8", "surrogateescape").removesuffix("\n")
            if not variables.get(name):  # an empty file would silently mean that there is no secret
                raise InvalidSetting(f"{name}_FILE accepts the path of a file that can be read and is not empty.")
    return variables
