"""A composition root of one's own: the service with users in a journal, and a webhook instead of mail."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from docs.examples.journal_users import JournalUsers
from docs.examples.webhook_notifier import WebhookNotifier
from usersvc.adapters.bcrypt.hasher import BcryptPasswordHasher
from usersvc.application.mail_delivery import MailDelivery
from usersvc.application.readiness import Readiness
from usersvc.application.registration import UserRegistrationService
from usersvc.asgi import AiohttpASGI, cancel_on_disconnect
from usersvc.bootstrap import exit_if_invalid
from usersvc.config import Settings
from usersvc.logs import configure_logging
from usersvc.web.app import create_app


def create_asgi_app() -> AiohttpASGI:
    """The service from the environment, for ``uvicorn --factory docs.examples.service:create_asgi_app``."""
    with exit_if_invalid():
        settings = Settings.from_environment()
    configure_logging(settings.log_level, settings.log_format)
    users = JournalUsers(Path(os.environ.get("JOURNAL", "users.jsonl")))
    notifier = WebhookNotifier(os.environ["WEBHOOK_URL"], secret=os.environ["WEBHOOK_SECRET"].encode())
    hasher = BcryptPasswordHasher(
        cost=settings.bcrypt_cost,
        workers=settings.hash_workers,
        queue=settings.hash_queue,
        pepper=settings.password_pepper,
    )
    dispatcher = MailDelivery(users.outbox, notifier)
    service = UserRegistrationService(
        users, hasher, password_min_length=settings.password_min_length, on_registered=dispatcher.wake
    )

    @asynccontextmanager
    async def resources() -> AsyncIterator[None]:
        # What is entered last is left first: the dispatcher ends before what it works with.
        async with users, notifier, hasher, dispatcher:
            yield

    return AiohttpASGI(
        create_app(
            service,
            users,
            Readiness(users),
            resources=resources,
            max_body_bytes=settings.max_body_bytes,
            admin_token=settings.admin_token,
            cancel_on_disconnect=cancel_on_disconnect,
        )
    )
