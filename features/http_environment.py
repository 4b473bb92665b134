"""``behave --stage http``: the same features over HTTP, on the service as it is run."""

from contextlib import ExitStack
from typing import Any, Protocol

from features.http_driver import HttpDriver, running_service
from features.scene import Context, set_scene, skip_elsewhere
from tests.e2e.server import Service


class RunContext(Context, Protocol):
    """Behave's context, with what lasts for the whole run."""

    service: Service


def before_all(context: RunContext) -> None:
    stack = ExitStack()
    context.add_cleanup(stack.close)
    context.service = stack.enter_context(running_service())


def before_scenario(context: RunContext, scenario: Any) -> None:
    skip_elsewhere(scenario, level="http")
    set_scene(context, HttpDriver(context.service))
