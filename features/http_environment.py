"""``behave --stage http``: the same features over HTTP, on the service as it is run.

With ``-D storage=postgres`` or ``-D storage=memory`` on another storage than SQLite.
"""

import sys
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Protocol

import pytest

from features.http_driver import HttpDriver, running_service
from features.mail_server import SmtpServer
from features.scene import Context, runs_at, set_scene
from features.storage import MemoryStorage, PostgresStorage, SqliteStorage, Storage
from tests.e2e.server import Service
from tests.postgres import fresh_database


class Services:
    """The services of the whole run, each started when a scenario first needs it."""

    def __init__(self, stack: ExitStack, storage: str) -> None:
        self._stack = stack
        self._kind = storage
        self.missing: str | None = None
        """Why the storage cannot be used here."""

    def driver(self) -> HttpDriver:
        """Of the service that logs a line for each mail."""
        return HttpDriver(*self._service)

    def driver_with_mail_server(self) -> HttpDriver:
        """Of the service that hands each mail to an SMTP server."""
        return HttpDriver(*self._service_with_mail_server, self._mail_server)

    @cached_property
    def _service(self) -> tuple[Service, Storage]:
        return self._run()

    @cached_property
    def _service_with_mail_server(self) -> tuple[Service, Storage]:
        return self._run(self._mail_server)

    def _run(self, mail_server: SmtpServer | None = None) -> tuple[Service, Storage]:
        folder = Path(self._stack.enter_context(TemporaryDirectory()))
        storage = self._storage(folder)
        return self._stack.enter_context(running_service(folder, storage, mail_server)), storage

    def _storage(self, folder: Path) -> Storage:
        match self._kind:
            case "sqlite":
                return SqliteStorage(folder)
            case "postgres":
                return PostgresStorage(self._stack.enter_context(fresh_database()))
            case "memory":
                storage = MemoryStorage()
                self._stack.callback(storage.close)
                return storage
            case unknown:
                raise ValueError(f"storage={unknown} is none of sqlite, postgres and memory")

    @cached_property
    def _mail_server(self) -> SmtpServer:
        mail_server = SmtpServer()
        self._stack.callback(mail_server.close)
        return mail_server


class RunContext(Context, Protocol):
    """Behave's context, with what lasts for the whole run."""

    config: Any
    storage: str
    services: Services


def before_all(context: RunContext) -> None:
    stack = ExitStack()
    context.add_cleanup(stack.close)
    context.storage = context.config.userdata.get("storage", "sqlite")
    context.services = Services(stack, context.storage)


def before_scenario(context: RunContext, scenario: Any) -> None:
    if not runs_at(scenario, level="http", storage=context.storage):
        return
    services = context.services
    if services.missing is not None:
        scenario.skip(services.missing)
        return
    has_mail_server = "mail_server" in scenario.effective_tags
    try:
        set_scene(context, services.driver_with_mail_server() if has_mail_server else services.driver())
    except pytest.skip.Exception as missing:
        services.missing = str(missing)
        scenario.skip(services.missing)


def after_all(context: RunContext) -> None:
    if context.services.missing is not None:
        # Past behave, which captures the output of hooks.
        print(f"skipped: {context.services.missing}", file=sys.__stdout__)
