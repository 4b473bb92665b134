"""The settings, read once from the environment and from a ``.env`` file."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from dotenv import dotenv_values

from usersvc.adapters.bcrypt_hasher import MAX_COST, MIN_COST
from usersvc.domain.user import Password

T = TypeVar("T")

MIN_PEPPER_LENGTH = 16

LATER = {
    "USERSVC_ADMIN_TOKEN": "would protect the lists of users",
    "USERSVC_SMTP_URL": "would send real mail",
}
"""Settings of the contract that this version does not know, and whose absence would do harm unnoticed."""


UNHEEDED = ("USERSVC_REGISTER_RATE", "USERSVC_TRUSTED_PROXIES", "USERSVC_HASH_QUEUE", "USERSVC_MAIL_FROM")
"""Settings of the contract that this version does not know, and whose absence a warning is enough for."""


class BadSetting(Exception):
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
class Settings:
    """Everything that can be set, with its default."""

    host: str = "127.0.0.1"
    port: int = 8000
    workers: int = 1
    """Processes."""
    database: MemoryDatabase | SqliteDatabase = field(default=SqliteDatabase(Path("usersvc.db")))
    bcrypt_cost: int = 12
    hash_workers: int = field(default_factory=lambda: os.cpu_count() or 1)
    """Threads."""
    password_min_length: int = Password.MIN_LENGTH
    """Code points."""
    password_pepper: bytes | None = field(default=None, repr=False)
    max_body_bytes: int = 16384
    log_level: str = "info"
    log_format: str = "console"
    without_effect: tuple[str, ...] = ()
    """Names of variables that are set and that this version does not heed."""

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] | None = None) -> "Settings":
        """Read the settings.

        Args:
            environ: the variables; by default those of the process, over those of a ``.env`` file in its folder.

        Raises:
            BadSetting: a value is not accepted.
        """
        if environ is None:
            # Without interpolation, so that a secret may hold a dollar sign.
            try:
                stored = dotenv_values(".env", interpolate=False)
            except (OSError, UnicodeDecodeError):
                raise BadSetting(".env accepts lines NAME=value in UTF-8.") from None
            environ = {name: value for name, value in stored.items() if value is not None} | dict(os.environ)
        defaults = cls()

        def read(name: str, accepts: str, parse: Callable[[str], T], default: T) -> T:
            text = environ.get(f"USERSVC_{name}", "")
            if not text:
                return default
            try:
                return parse(text)
            except ValueError:
                raise BadSetting(f"USERSVC_{name} accepts {accepts}.") from None

        def number(name: str, least: int, most: int, default: int) -> int:
            return read(name, f"a whole number from {least} to {most}", _between(least, most), default)

        for name, purpose in LATER.items():
            if environ.get(name):
                raise BadSetting(f"{name} accepts nothing in this version: it {purpose}, which is not there yet.")
        settings = cls(
            host=environ.get("USERSVC_HOST") or defaults.host,
            port=number("PORT", 0, 65535, defaults.port),
            workers=number("WORKERS", 1, 256, defaults.workers),
            database=read(
                "DATABASE_URL",
                "sqlite:///relative/file, sqlite:////absolute/file or memory://",
                _database,
                defaults.database,
            ),
            bcrypt_cost=number("BCRYPT_COST", MIN_COST, MAX_COST, defaults.bcrypt_cost),
            hash_workers=number("HASH_WORKERS", 1, 256, defaults.hash_workers),
            password_min_length=number("PASSWORD_MIN_LENGTH", Password.MIN_LENGTH, 64, defaults.password_min_length),
            password_pepper=read(
                "PASSWORD_PEPPER", f"a secret of at least {MIN_PEPPER_LENGTH} characters", _pepper, None
            ),
            max_body_bytes=number("MAX_BODY_BYTES", 1024, 16 * 1024 * 1024, defaults.max_body_bytes),
            log_level=read("LOG_LEVEL", "debug, info, warning, error or critical", _log_level, defaults.log_level),
            log_format=read("LOG_FORMAT", "console or json", _one_of("console", "json"), defaults.log_format),
            without_effect=tuple(name for name in UNHEEDED if environ.get(name)),
        )
        if isinstance(settings.database, MemoryDatabase) and settings.workers > 1:
            raise BadSetting("USERSVC_WORKERS accepts 1 with memory://: processes do not share their memory.")
        return settings


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


def _database(url: str) -> MemoryDatabase | SqliteDatabase:
    if url == "memory://":
        return MemoryDatabase()
    path = url.removeprefix("sqlite:///")
    # SQLite gives names with a colon or a question mark meanings that a file does not have.
    if path == url or not path or path.startswith((":", "file:")) or "?" in path or "\0" in path:
        raise ValueError
    return SqliteDatabase(Path(path))


def _pepper(text: str) -> bytes:
    if len(text) < MIN_PEPPER_LENGTH:
        raise ValueError
    return text.encode("utf-8", "surrogateescape")
