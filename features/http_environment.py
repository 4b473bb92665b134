"""``behave --stage http``: the same features over HTTP, on the service as it is run."""

from contextlib import ExitStack
from functools import cached_property
from typing import Any, Protocol

from features.http_driver import HttpDriver, running_service
from features.mail_server import SmtpServer
from features.scene import Context, runs_at, set_scene
from tests.e2e.server import Service


class Services:
    """The services of the whole run, each started when a scenario first needs it."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def driver(self) -> HttpDriver:
        """Of the service that logs a line for each mail."""
        return HttpDriver(self._service)

    def driver_with_mail_server(self) -> HttpDriver:
        """Of the service that hands each mail to an SMTP server."""
        return HttpDriver(self._service_with_mail_server, self._mail_server)

    @cached_property
    def _service(self) -> Service:
        return self._stack.enter_context(running_service())

    @cached_property
    def _service_with_mail_server(self) -> Service:
        return self._stack.enter_context(running_service(self._mail_server))

    @cached_property
    def _mail_server(self) -> SmtpServer:
        mail_server = SmtpServer()
        self._stack.callback(mail_server.close)
        return mail_server


class RunContext(Context, Protocol):
    """Behave's context, with what lasts for the whole run."""

    services: Services


def before_all(context: RunContext) -> None:
    stack = ExitStack()
    context.add_cleanup(stack.close)
    context.services = Services(stack)


def before_scenario(context: RunContext, scenario: Any) -> None:
    if not runs_at(scenario, level="http"):
        return
    services = context.services
    has_mail_server = "mail_server" in scenario.effective_tags
    set_scene(context, services.driver_with_mail_server() if has_mail_server else services.driver())
