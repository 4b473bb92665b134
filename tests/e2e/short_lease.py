"""The service with a lease that a test can wait for; a module of its own because it is imported at every start."""

from datetime import timedelta

from usersvc.asgi import AiohttpASGI
from usersvc.bootstrap import create_service_app, settings_or_exit
from usersvc.logs import configure_logging

LEASE = timedelta(seconds=2)


def create_asgi_app() -> AiohttpASGI:
    """As in ``usersvc.bootstrap``, for ``uvicorn --factory``."""
    settings = settings_or_exit()
    configure_logging(settings.log_level, settings.log_format)
    return AiohttpASGI(create_service_app(settings, lease=LEASE))
