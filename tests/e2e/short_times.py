"""``usersvc serve`` with times that a test can wait for; a program of its own, since the times are not settings."""

from usersvc import cli, server
from usersvc.commands import serving
from usersvc.web.app import create_app

HEAD, KEEP_ALIVE, WRITE, BODY = 1.0, 1, 1.0, 1.0

if __name__ == "__main__":
    server.HEAD_TIMEOUT = HEAD
    server.WRITE_TIMEOUT = WRITE
    server.LINGER = 0.5
    vars(serving)["KEEP_ALIVE"] = KEEP_ALIVE
    assert create_app.__kwdefaults__ is not None
    create_app.__kwdefaults__["body_timeout"] = BODY
    cli.main()
