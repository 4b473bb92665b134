"""The service with a store that raises an unexpected exception."""

from usersvc import bootstrap
from usersvc.adapters.memory import InMemoryUsers
from usersvc.application.read_models import Order, Page
from usersvc.asgi import AiohttpASGI

SECRET_TEXT = "what-an-error-says-4711"


class FailingUsers(InMemoryUsers):
    async def page(self, *, limit: int, order: Order, after: int | None, mailbox: str | None) -> Page:
        raise RuntimeError(SECRET_TEXT)


def create_asgi_app() -> AiohttpASGI:
    """As in ``usersvc.bootstrap``, for ``uvicorn --factory``."""
    vars(bootstrap)["InMemoryUsers"] = FailingUsers
    return bootstrap.create_asgi_app()
