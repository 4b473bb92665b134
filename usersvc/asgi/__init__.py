"""Serve an aiohttp application from an ASGI server."""

from usersvc.asgi.application import ASGI_SCOPE, ASGI_STATE, AiohttpASGI, Message, Scope, cancel_on_disconnect

__all__ = ("ASGI_SCOPE", "ASGI_STATE", "AiohttpASGI", "Message", "Scope", "cancel_on_disconnect")
