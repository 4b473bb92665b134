"""The composition root: the only module that names concrete adapters."""

import gc
import logging
import sys
from collections.abc import AsyncIterator, Generator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

from aiohttp import web

from usersvc.adapters import mail
from usersvc.adapters.bcrypt.hasher import BcryptPasswordHasher
from usersvc.adapters.memory import InMemoryUsers
from usersvc.adapters.sqlite import SqliteUsers
from usersvc.adapters.telemetry.instrumented import observed
from usersvc.adapters.telemetry.prometheus import PrometheusMetrics
from usersvc.application.mail_delivery import MailDelivery
from usersvc.application.ports import Notifier, Outbox, PasswordHasher, Store
from usersvc.application.readiness import Readiness
from usersvc.application.registration import UserRegistrationService
from usersvc.asgi import AiohttpASGI, cancel_on_disconnect
from usersvc.config import InvalidSetting, Settings
from usersvc.logs import configure_logging
from usersvc.setting_parsers import MIN_TOKEN_LENGTH, MemoryDatabase, PostgresDatabase, SqliteDatabase
from usersvc.web.app import create_app
from usersvc.web.middleware.authentication import MAX_FAILURES
from usersvc.web.middleware.rate_limit import RateLimit

if TYPE_CHECKING:
    from usersvc.adapters.postgres import PostgresUsers
    from usersvc.adapters.redis.counts import RedisCounts
    from usersvc.adapters.telemetry.opentelemetry import OpenTelemetryTracing

log = logging.getLogger(__name__)


def create_service_app(settings: Settings) -> web.Application:
    """The whole service, which opens its resources when it starts; an invalid OTEL_... raises ``InvalidSetting``."""
    metrics = PrometheusMetrics()
    tracing = _tracing(settings)
    storage = _create_users(settings)
    bcrypt = BcryptPasswordHasher(
        cost=settings.bcrypt_cost,
        workers=settings.hash_workers,
        queue=settings.hash_queue,
        pepper=settings.password_pepper,
    )
    users: Store = storage
    outbox: Outbox = storage.outbox
    hasher: PasswordHasher = bcrypt
    notifier: Notifier = mail.LoggingNotifier()
    if settings.smtp is not None and settings.mail_from is not None:
        notifier = mail.SmtpNotifier(settings.smtp, sender=settings.mail_from)
    for instrument in (metrics,) if tracing is None else (metrics, tracing):
        users = observed(users, instrument.storage_call)
        outbox = observed(outbox, instrument.storage_call, prefix="outbox_")
        hasher = observed(hasher, instrument.hashing)
        notifier = observed(notifier, instrument.notification)
    delivery = MailDelivery(outbox, notifier)
    registration = UserRegistrationService(
        users, hasher, password_min_length=settings.password_min_length, on_registered=delivery.wake
    )
    rate_limits, failure_limit, shared_counts = _limits(settings, metrics)

    @asynccontextmanager
    async def resources() -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            # Closed in reverse: tracing last, after the last span.
            for resource in (tracing, storage, bcrypt, shared_counts, delivery):
                if isinstance(resource, AbstractAsyncContextManager):
                    await stack.enter_async_context(resource)
            if not isinstance(storage, InMemoryUsers | SqliteUsers):
                await stack.enter_async_context(storage.outbox.listen(delivery.wake))
            _log_warnings(settings)
            yield

    return create_app(
        registration,
        users,
        Readiness(users),
        resources=resources,
        max_body_bytes=settings.max_body_bytes,
        admin_token=settings.admin_token,
        admin_failures=failure_limit,
        rate_limits=rate_limits,
        cors_origins=settings.cors_origins,
        trusted_proxies=settings.trusted_proxies,
        cancel_on_disconnect=cancel_on_disconnect,
        metrics=partial(metrics.exposition, storage.outbox),
        observe=metrics.observe_request,
        trace=None if tracing is None else tracing.request,
    )


def _log_warnings(settings: Settings) -> None:
    """Log the settings that are accepted but weak or unknown."""
    if settings.bcrypt_cost < 10:  # noqa: PLR2004  # OWASP Password Storage Cheat Sheet, "bcrypt"
        log.warning("USERSVC_BCRYPT_COST is under 10: the hashes are too fast to compute")
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
        # The library reads some of its variables when it is imported.
        from usersvc.adapters.telemetry import opentelemetry  # noqa: PLC0415  # an extra, slow to import

        return opentelemetry.OpenTelemetryTracing()
    except ValueError as error:
        raise InvalidSetting(f"USERSVC_TRACING accepts otlp only with valid OTEL_... variables: {error}") from None


def _limits(
    settings: Settings, metrics: PrometheusMetrics
) -> "tuple[dict[str, RateLimit], RateLimit | None, RedisCounts | None]":
    """The limits on requests and on wrong admin tokens, and the counts that they share with other processes."""
    if settings.register_rate is None and settings.admin_token is None:
        return {}, None, None
    from limits import parse  # noqa: PLC0415  # slow to import

    shared_counts = None
    if settings.rate_limit_store is not None:
        from usersvc.adapters.redis.counts import RedisCounts  # noqa: PLC0415  # an extra, which may be missing

        shared_counts = RedisCounts(settings.rate_limit_store, secret=settings.password_pepper)
    limit = partial(RateLimit, trusted_proxies=settings.trusted_proxies, shared=shared_counts)
    by_name = {}
    if settings.register_rate is not None:
        by_name["register"] = limit("register", settings.register_rate, on_fallback=metrics.rate_limit_fallbacks.inc)
    failures = limit("admin-token", parse(MAX_FAILURES)) if settings.admin_token else None
    return by_name, failures, shared_counts


def _create_users(settings: Settings) -> "InMemoryUsers | SqliteUsers | PostgresUsers":
    match settings.database:
        case MemoryDatabase():
            return InMemoryUsers()
        case SqliteDatabase(path):
            return SqliteUsers(path)
        case PostgresDatabase(url):
            from usersvc.adapters.postgres import PostgresUsers  # noqa: PLC0415  # an extra, slow to import

            return PostgresUsers(url, pool_size=settings.database_pool_size)


@asynccontextmanager
async def open_storage(settings: Settings) -> AsyncIterator[Store]:
    """Open the store of the settings, or raise ``StorageUnavailable``; a missing database file is created."""
    users = _create_users(settings)
    async with nullcontext() if isinstance(users, InMemoryUsers) else users:
        yield users


async def check_storage(settings: Settings) -> None:
    """Open the store as the service does and close it, or raise ``StorageUnavailable``."""
    async with open_storage(settings) as store:
        await store.check()


def create_asgi_app() -> AiohttpASGI:
    """The whole service from the environment, for ``uvicorn --factory``; exits with code 2 for an invalid setting."""
    with exit_if_invalid():
        settings = Settings.from_environment()
        configure_logging(settings.log_level, settings.log_format)
        app = create_service_app(settings)
    # After the handler that opens the resources.
    app.on_startup.append(_freeze)
    return AiohttpASGI(app)


async def _freeze(_: web.Application) -> None:
    """Exclude the objects that live as long as the process from garbage collection."""
    gc.collect()
    gc.freeze()


@contextmanager
def exit_if_invalid() -> Generator[None, None, None]:
    """Print an ``InvalidSetting`` that is raised inside on standard error, and exit with code 2."""
    try:
        yield
    except InvalidSetting as error:
        print(f"usersvc: {error}", file=sys.stderr)  # noqa: T201  # logging may not be configured yet
        raise SystemExit(2) from None
