"""The composition root: the only module that names concrete adapters."""

import gc
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

from usersvc.adapters.bcrypt.hasher import BcryptPasswordHasher
from usersvc.adapters.mail import LoggingNotifier, SmtpNotifier
from usersvc.adapters.memory import InMemoryUsers
from usersvc.adapters.sqlite import SqliteUsers
from usersvc.adapters.telemetry.instrumented import observed
from usersvc.adapters.telemetry.prometheus import PrometheusMetrics
from usersvc.application.mail_delivery import MailDelivery
from usersvc.application.ports import Notifier, Outbox, PasswordHasher, Store
from usersvc.application.readiness import Readiness
from usersvc.application.registration import UserRegistrationService
from usersvc.application.user_queries import UserQueryService
from usersvc.asgi import AiohttpASGI, cancel_on_disconnect
from usersvc.config import MIN_TOKEN_LENGTH, InvalidSetting, MemoryDatabase, PostgresDatabase, Settings, SqliteDatabase
from usersvc.logs import configure_logging
from usersvc.web.app import create_app

if TYPE_CHECKING:
    from usersvc.adapters.postgres import PostgresUsers
    from usersvc.adapters.redis.counts import RedisCounts
    from usersvc.adapters.telemetry.opentelemetry import OpenTelemetryTracing
    from usersvc.web.middleware.rate_limit import FailureLimit, RateLimit
    from usersvc.web.request_counts import Counts

log = logging.getLogger(__name__)

WEAK_COST = 10
"""Under this bcrypt is too fast (OWASP Password Storage Cheat Sheet, "bcrypt")."""


def create_service_app(settings: Settings) -> web.Application:
    """The whole service as an aiohttp application, which opens its resources when it starts.

    Raises:
        InvalidSetting: tracing is on, and an OTEL_... variable has an invalid value.
    """
    metrics = PrometheusMetrics()
    tracing = _tracing(settings)
    instruments: list[PrometheusMetrics | OpenTelemetryTracing] = [metrics] if tracing is None else [metrics, tracing]
    users = create_users(settings)
    shared_counts = _shared_counts(settings)
    hasher = BcryptPasswordHasher(
        cost=settings.bcrypt_cost,
        workers=settings.hash_workers,
        queue=settings.hash_queue,
        pepper=settings.password_pepper,
    )
    observed_users: Store = users
    observed_outbox: Outbox = users.outbox
    observed_hasher: PasswordHasher = hasher
    observed_notifier = _notifier(settings)
    for instrument in instruments:
        observed_users = observed(observed_users, instrument.storage_call)
        observed_outbox = observed(observed_outbox, instrument.storage_call, prefix="outbox_")
        observed_hasher = observed(observed_hasher, instrument.hashing)
        observed_notifier = observed(observed_notifier, instrument.notification)
    dispatcher = MailDelivery(observed_outbox, observed_notifier)
    service = UserRegistrationService(
        observed_users,
        observed_hasher,
        password_min_length=settings.password_min_length,
        on_registered=dispatcher.wake,
    )

    @asynccontextmanager
    async def resources() -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            if tracing is not None:
                # Closed last, after the last span.
                await stack.enter_async_context(tracing)
            if not isinstance(users, InMemoryUsers):
                await stack.enter_async_context(users)
            await stack.enter_async_context(hasher)
            if shared_counts is not None:
                await stack.enter_async_context(shared_counts)
            await stack.enter_async_context(dispatcher)
            if not isinstance(users, InMemoryUsers | SqliteUsers):
                await stack.enter_async_context(users.outbox.listen(dispatcher.wake))
            _log_warnings(settings)
            yield

    return create_app(
        service,
        UserQueryService(observed_users),
        Readiness(observed_users),
        resources=resources,
        max_body_bytes=settings.max_body_bytes,
        admin_token=settings.admin_token,
        admin_failures=_failure_limit(settings, shared_counts),
        rate_limits=_rate_limits(settings, shared_counts, metrics),
        cors_origins=settings.cors_origins,
        trusted_proxies=settings.trusted_proxies,
        cancel_on_disconnect=cancel_on_disconnect,
        metrics=partial(metrics.exposition, users.outbox),
        observe=metrics.observe_request,
        trace=None if tracing is None else tracing.request,
    )


def _log_warnings(settings: Settings) -> None:
    """Log the settings that are accepted but weak or unknown."""
    if settings.bcrypt_cost < WEAK_COST:
        log.warning("USERSVC_BCRYPT_COST is under %d: the hashes are too fast to compute", WEAK_COST)
    if settings.smtp is not None and settings.smtp.exposes_password:
        log.warning("USERSVC_SMTP_URL sends the password unencrypted: use smtps:// or smtp+starttls://")
    for name in settings.without_effect:
        log.warning("%s has no effect in this version", name)
    if settings.admin_token is None:
        log.warning("without USERSVC_ADMIN_TOKEN, GET /users and /metrics are open: any client can list all users")
    elif len(settings.admin_token) < MIN_TOKEN_LENGTH:
        log.warning("USERSVC_ADMIN_TOKEN has under %d characters: it may be guessed", MIN_TOKEN_LENGTH)


def _tracing(settings: Settings) -> "OpenTelemetryTracing | None":
    if settings.tracing == "off":
        return None
    try:
        from usersvc.adapters.telemetry.opentelemetry import OpenTelemetryTracing  # noqa: PLC0415  # an extra, and slow to import

        return OpenTelemetryTracing()
    except ValueError as error:
        raise InvalidSetting(f"USERSVC_TRACING accepts otlp only with valid OTEL_... variables: {error}") from None


def _shared_counts(settings: Settings) -> "RedisCounts | None":
    if settings.rate_limit_store is None or (settings.register_rate is None and settings.admin_token is None):
        return None
    from usersvc.adapters.redis.counts import RedisCounts  # noqa: PLC0415  # an extra, which may be missing

    return RedisCounts(settings.rate_limit_store, secret=settings.password_pepper)


def _rate_limits(
    settings: Settings, shared_counts: "RedisCounts | None", metrics: PrometheusMetrics
) -> "dict[str, RateLimit]":
    if settings.register_rate is None:
        return {}
    from usersvc.web.middleware.rate_limit import RateLimit  # noqa: PLC0415  # slow to import
    from usersvc.web.request_counts import BoundedMemory, FallbackCounts, OwnCounts  # noqa: PLC0415  # slow to import

    counts: Counts = OwnCounts(BoundedMemory())
    if shared_counts is not None:
        counts = FallbackCounts(shared_counts, counts, metrics.rate_limit_fallbacks.inc)
    limit = RateLimit(settings.register_rate, trusted_proxies=settings.trusted_proxies, counts=counts)
    return {"register": limit}


def _failure_limit(settings: Settings, shared_counts: "RedisCounts | None") -> "FailureLimit | None":
    if settings.admin_token is None:
        return None
    from usersvc.web.middleware.rate_limit import FailureLimit  # noqa: PLC0415  # slow to import

    return FailureLimit(trusted_proxies=settings.trusted_proxies, shared=shared_counts)


def create_users(settings: Settings) -> "InMemoryUsers | SqliteUsers | PostgresUsers":
    """The store of the settings, not opened yet."""
    match settings.database:
        case MemoryDatabase():
            return InMemoryUsers()
        case SqliteDatabase(path):
            return SqliteUsers(path)
        case PostgresDatabase(url):
            # The driver is an extra, and slow to import.
            from usersvc.adapters.postgres import PostgresUsers  # noqa: PLC0415

            return PostgresUsers(url, pool_size=settings.database_pool_size)


@asynccontextmanager
async def open_storage(settings: Settings) -> AsyncIterator[Store]:
    """Open the store of the settings; a missing database file is created.

    Raises:
        StorageUnavailable: it cannot be opened.
    """
    users = create_users(settings)
    async with AsyncExitStack() as stack:
        if not isinstance(users, InMemoryUsers):
            await stack.enter_async_context(users)
        yield users


async def check_storage(settings: Settings) -> None:
    """Open the store as the service does, and close it.

    Raises:
        StorageUnavailable: it cannot be opened.
    """
    async with open_storage(settings) as store:
        await store.check()


def _notifier(settings: Settings) -> Notifier:
    if settings.smtp is None:
        return LoggingNotifier()
    return SmtpNotifier(settings.smtp, sender=settings.mail_from)


def create_asgi_app() -> AiohttpASGI:
    """The whole service from the environment, for ``uvicorn --factory``; when started, it calls ``gc.freeze``.

    Raises:
        SystemExit: with code 2, after a message on standard error, for an invalid setting.
    """
    settings = settings_or_exit()
    configure_logging(settings.log_level, settings.log_format)
    with _exit_on_invalid_setting():
        app = create_service_app(settings)
    # After the handler that opens the resources.
    app.on_startup.append(_freeze)
    return AiohttpASGI(app)


async def _freeze(_: web.Application) -> None:
    """Exclude the objects that live as long as the process from garbage collection."""
    gc.collect()
    gc.freeze()


def settings_or_exit() -> Settings:
    """The settings from the environment.

    Raises:
        SystemExit: with code 2, after a message on standard error, for an invalid setting.
    """
    with _exit_on_invalid_setting():
        return Settings.from_environment()


@contextmanager
def _exit_on_invalid_setting() -> Iterator[None]:
    try:
        yield
    except InvalidSetting as error:
        print(f"usersvc: {error}", file=sys.stderr)  # noqa: T201  # logging is not configured yet
        raise SystemExit(2) from None
