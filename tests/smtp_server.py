"""A real SMTP server (aiosmtpd) that refuses, stalls or hangs up at any point that a test names."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

STALL, HANG_UP = "stall", "hang up"
"""What it can do instead of replying."""

USER, PASSWORD = "service", "opens the pod bay doors"


class Mailbox:
    """The mails and commands that a server has received."""

    def __init__(self, moods: Mapping[str, str]) -> None:
        self.moods = dict(moods)
        self.envelopes: list[Envelope] = []
        self.commands: list[str] = []
        self.port = 0
        self.stalled = asyncio.Event()
        self.disconnected = asyncio.Event()

    @property
    def messages(self) -> list[EmailMessage]:
        return [parsed(envelope.original_content or b"") for envelope in self.envelopes]

    async def handle_DATA(  # noqa: N802  # aiosmtpd's name
        self, server: "MoodyServer", _: Session, envelope: Envelope
    ) -> str:
        mood = self.moods.get("message")
        if mood is None:
            self.envelopes.append(envelope)
            return "250 OK"
        await server.behave(mood)
        return mood


def parsed(raw: bytes) -> EmailMessage:
    message = BytesParser(EmailMessage, policy=default).parsebytes(raw)
    assert isinstance(message, EmailMessage)
    return message


def _moody(command: str) -> Any:
    """aiosmtpd's method for a command, which replies as the mailbox says."""
    method = getattr(SMTP, f"smtp_{command}")

    async def reply(server: "MoodyServer", arg: str | None) -> None:
        mood = await server.mood_for(command)
        await (method(server, arg) if mood is None else server.push(mood))

    return reply


class MoodyServer(SMTP):
    """One connection."""

    def __init__(self, mailbox: Mailbox, **options: Any) -> None:
        super().__init__(mailbox, hostname="mail.example.com", loop=asyncio.get_running_loop(), **options)
        self._mailbox = mailbox
        self._greeted = False

    async def behave(self, mood: str) -> None:
        if mood not in {STALL, HANG_UP}:
            return
        assert isinstance(self.transport, asyncio.Transport)
        transport = self.transport
        if mood == STALL:
            self._mailbox.stalled.set()
        else:
            transport.abort()
        try:
            await asyncio.Event().wait()
        finally:
            # aiosmtpd cancels this when the client has disconnected.
            transport.close()

    async def push(self, status: Any) -> None:
        if not self._greeted:
            self._greeted = True
            status = await self.mood_for("connect") or status
        await super().push(status)

    async def mood_for(self, command: str) -> str | None:
        self._mailbox.commands.append(command)
        mood = self._mailbox.moods.get(command)
        if mood is not None:
            await self.behave(mood)
        return mood

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._mailbox.disconnected.set()


for _command in ("EHLO", "AUTH", "STARTTLS", "MAIL", "RCPT", "DATA", "QUIT"):
    setattr(MoodyServer, f"smtp_{_command}", _moody(_command))


def _authenticate(_server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, data: Any) -> AuthResult:
    success = data == LoginPassword(USER.encode(), PASSWORD.encode())
    # Not handled: aiosmtpd sends the reply.
    return AuthResult(success=success, handled=False)


@asynccontextmanager
async def smtp_server(
    moods: Mapping[str, str] | None = None, *, tls: Any = None, **options: Any
) -> AsyncIterator[Mailbox]:
    """Run a server on the loopback interface.

    Args:
        moods: a reply, ``STALL`` or ``HANG_UP`` for the greeting (``connect``), a command, or the ``message``.
        tls: a context for TLS from the first byte.
        options: aiosmtpd's.
    """
    mailbox = Mailbox(moods or {})
    connections: list[MoodyServer] = []

    def connect() -> MoodyServer:
        connections.append(MoodyServer(mailbox, authenticator=_authenticate, **options))
        return connections[-1]

    server = await asyncio.get_running_loop().create_server(connect, "127.0.0.1", 0, ssl=tls)
    mailbox.port = server.sockets[0].getsockname()[1]
    try:
        yield mailbox
    finally:
        server.close()
        for connection in connections:
            transport = connection.transport
            # aiosmtpd closes some transports twice, and in CPython 3.11.2 abort() fails on a TLS transport after that.
            if isinstance(transport, asyncio.Transport) and not transport.is_closing():
                transport.abort()
        await server.wait_closed()
