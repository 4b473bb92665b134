"""The same application under aiohttp's own server instead of uvicorn and the ASGI adapter.

USERSVC_PORT=8000 python -m benchmarks.peers.aiohttp_own
"""

import uvloop
from aiohttp import web

from usersvc.bootstrap import create_service_app
from usersvc.config import Settings
from usersvc.logs import configure_logging

if __name__ == "__main__":
    settings = Settings.from_environment()
    configure_logging(settings.log_level, settings.log_format)
    web.run_app(
        create_service_app(settings),
        host=settings.host,
        port=settings.port,
        access_log=None,
        print=None,
        loop=uvloop.new_event_loop(),
    )
