"""Serve an aiohttp application from an ASGI server."""

from usersvc.asgi.application import ASGI_STATE, AiohttpASGI
from usersvc.asgi.exchange import cancel_on_disconnect
from usersvc.asgi.heads import Message, Scope
from usersvc.asgi.private_parts import ASGI_SCOPE

__all__ = ("ASGI_SCOPE", "ASGI_STATE", "AiohttpASGI", "Message", "Scope", "cancel_on_disconnect")
