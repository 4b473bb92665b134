"""The service with a pause for Redis that a test can wait for; a module of its own, imported at the start."""

from usersvc.adapters.redis_counts import RedisCounts
from usersvc.asgi import AiohttpASGI
from usersvc.bootstrap import create_asgi_app as create


def create_asgi_app() -> AiohttpASGI:
    """As in ``usersvc.bootstrap``, for ``uvicorn --factory``."""
    defaults = RedisCounts.__init__.__kwdefaults__
    assert defaults is not None
    defaults["pause"] = 0.1
    return create()
