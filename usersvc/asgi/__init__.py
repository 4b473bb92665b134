"""Serve an aiohttp application from an ASGI server."""

from usersvc.asgi.application import ASGI_STATE, AiohttpASGI
from usersvc.asgi.disconnection import cancel_on_disconnect
from usersvc.asgi.private_parts import ASGI_SCOPE
from usersvc.asgi.scopes import Message, Scope

__all__ = ("ASGI_SCOPE", "ASGI_STATE", "AiohttpASGI", "Message", "Scope", "cancel_on_disconnect")
