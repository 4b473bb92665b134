"""The composition root: the only place that plugs concrete adapters into the application."""

import logging
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial

from aiohttp import web

from usersvc.adapters.bcrypt_hasher import BcryptPasswordHasher
from usersvc.adapters.logging_notifier import LoggingNotifier
from usersvc.adapters.memory import InMemoryUsers
from usersvc.adapters.prometheus import MeteredOutbox, MeteredPasswordHasher, MeteredUsers, PrometheusMetrics
from usersvc.adapters.smtp_notifier import Security, SmtpNotifier
from usersvc.adapters.sqlite import SqliteUsers
from usersvc.application.notifications import LEASE, NotificationDispatcher
from usersvc.application.ports import Notifier, Store
from usersvc.application.registration import UserRegistrationService
from usersvc.asgi import AiohttpASGI, while_client_waits
from usersvc.config import BadSetting, Settings, SqliteDatabase
from usersvc.logs import configure_logging
from usersvc.web.app import create_app
from usersvc.web.rate_limit import BoundedMemory, RateLimit

log = logging.getLogger(__name__)

WEAK_COST = 10
"""Under this bcrypt is too fast (OWASP Password Storage Cheat Sheet, "bcrypt")."""

GOOD_TOKEN_LENGTH = 22
"""Characters; as many of base64 hold 128 bits (OWASP ASVS 5.0, 7.2.3)."""


def create_service_app(settings: Settings, *, lease: timedelta = LEASE) -> web.Application:
    """The whole service as an aiohttp application; it opens what it needs when it starts.

    Args:
        settings: as read from the environment.
        lease: how long a crashed process keeps others from the notifications that it had in hand.
    """
    metrics = PrometheusMetrics()
    users = _users(settings)
    hasher = BcryptPasswordHasher(
        cost=settings.bcrypt_cost,
        workers=settings.hash_workers,
        queue=settings.hash_queue,
        pepper=settings.password_pepper,
    )
    dispatcher = NotificationDispatcher(MeteredOutbox(users.outbox, metrics), _notifier(settings), lease=lease)
    service = UserRegistrationService(
        MeteredUsers(users, metrics),
        MeteredPasswordHasher(hasher, metrics),
        password_min_length=settings.password_min_length,
        on_registered=dispatcher.wake,
    )

    def check_room() -> None:
        with metrics.refusals():
            hasher.check_room()

    @asynccontextmanager
    async def resources() -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if isinstance(users, SqliteUsers):
                await stack.enter_async_context(users)
            await stack.enter_async_context(hasher)
            if settings.bcrypt_cost < WEAK_COST:
                log.warning("USERSVC_BCRYPT_COST is under %d: hashes are quick to guess", WEAK_COST)
            await stack.enter_async_context(dispatcher)
            if settings.smtp is not None and settings.smtp.user and settings.smtp.security is Security.NONE:
                log.warning("USERSVC_SMTP_URL sends its password unprotected: use smtps:// or smtp+starttls://")
            for name in settings.without_effect:
                log.warning("%s has no effect in this version", name)
            if settings.admin_token is None:
                log.warning("nothing protects GET /users and /metrics: whoever reaches the service can list everybody")
            elif len(settings.admin_token) < GOOD_TOKEN_LENGTH:
                log.warning("USERSVC_ADMIN_TOKEN has under %d characters: it may be guessed", GOOD_TOKEN_LENGTH)
            yield

    return create_app(
        service,
        resources=resources,
        max_body_bytes=settings.max_body_bytes,
        admin_token=settings.admin_token,
        rate_limit=_rate_limit(settings),
        cors_origins=settings.cors_origins,
        trusted_proxies=settings.trusted_proxies,
        check_room=check_room,
        waiting_client=while_client_waits,
        metrics=partial(metrics.exposition, users.outbox),
        observe=metrics.observe_request,
    )


def _rate_limit(settings: Settings) -> RateLimit | None:
    if settings.register_rate is None:
        return None
    return RateLimit(settings.register_rate, trusted_proxies=settings.trusted_proxies, storage=BoundedMemory())


def _users(settings: Settings) -> SqliteUsers | InMemoryUsers:
    return SqliteUsers(settings.database.path) if isinstance(settings.database, SqliteDatabase) else InMemoryUsers()


@asynccontextmanager
async def opened_store(settings: Settings) -> AsyncIterator[Store]:
    """The store that the settings name, open while this is entered; a database file is made if it is missing.

    Raises:
        StorageUnavailable: it cannot be opened.
    """
    users = _users(settings)
    async with AsyncExitStack() as stack:
        if isinstance(users, SqliteUsers):
            await stack.enter_async_context(users)
        yield users


async def check_storage(settings: Settings) -> None:
    """Open the storage once, and close it.

    Raises:
        StorageUnavailable: it cannot be opened.
    """
    async with opened_store(settings) as store:
        await store.check()


def _notifier(settings: Settings) -> Notifier:
    if settings.smtp is None:
        return LoggingNotifier()
    return SmtpNotifier(settings.smtp, sender=settings.mail_from)


def create_asgi_app() -> AiohttpASGI:
    """The whole service from the environment, for ``uvicorn --factory``.

    Raises:
        SystemExit: with code 2, after one line on standard error, for a setting that is not accepted.
    """
    settings = settings_or_exit()
    configure_logging(settings.log_level, settings.log_format)
    return AiohttpASGI(create_service_app(settings))


def settings_or_exit() -> Settings:
    """The settings from the environment.

    Raises:
        SystemExit: with code 2, after one line on standard error, for a setting that is not accepted.
    """
    try:
        return Settings.from_environment()
    except BadSetting as error:
        print(f"usersvc: {error}", file=sys.stderr)  # noqa: T201  # the log is not set up yet
        raise SystemExit(2) from None
