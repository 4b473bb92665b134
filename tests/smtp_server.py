"""A real SMTP server (aiosmtpd) that does as a test says: it may refuse, stall or hang up at any point."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import default
from typing import Any

from aiosmtpd.smtp import SMTP, AuthResult, Envelope, LoginPassword, Session

STALL, HANG_UP = "stall", "hang up"
"""What it may do instead of giving an answer."""

USER, PASSWORD = "service", "opens the pod bay doors"


class Mailbox:
    """What a server has taken, and what it has been told before."""

    def __init__(self, moods: Mapping[str, str]) -> None:
        self.moods = dict(moods)
        self.envelopes: list[Envelope] = []
        self.commands: list[str] = []
        self.port = 0
        self.arrived = asyncio.Event()
        self.stalled = asyncio.Event()
        self.disconnected = asyncio.Event()

    @property
    def messages(self) -> list[EmailMessage]:
        return [parsed(envelope) for envelope in self.envelopes]

    async def handle_DATA(  # noqa: N802  # aiosmtpd's name
        self, server: "MoodyServer", _: Session, envelope: Envelope
    ) -> str:
        mood = self.moods.get("message")
        if mood is None:
            self.envelopes.append(envelope)
            self.arrived.set()
            return "250 OK"
        await server.behave(mood)
        return mood


def parsed(envelope: Envelope) -> EmailMessage:
    content = envelope.original_content
    assert content is not None
    message = BytesParser(EmailMessage, policy=default).parsebytes(content)
    assert isinstance(message, EmailMessage)
    return message


class MoodyServer(SMTP):
    """One conversation."""

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
            # aiosmtpd cancels this when the client is gone.
            transport.close()

    async def push(self, status: Any) -> None:
        if not self._greeted:
            self._greeted = True
            status = await self._in_mood("connect") or status
        await super().push(status)

    async def _in_mood(self, command: str) -> str | None:
        self._mailbox.commands.append(command)
        mood = self._mailbox.moods.get(command)
        if mood is not None:
            await self.behave(mood)
        return mood

    async def _answer(self, command: str, arg: str | None) -> None:
        reply = await self._in_mood(command)
        await (getattr(super(), f"smtp_{command}")(arg) if reply is None else self.push(reply))

    async def smtp_EHLO(self, hostname: str) -> None:  # noqa: N802
        await self._answer("EHLO", hostname)

    async def smtp_AUTH(self, arg: str) -> None:  # noqa: N802
        await self._answer("AUTH", arg)

    async def smtp_STARTTLS(self, arg: str) -> None:  # noqa: N802
        await self._answer("STARTTLS", arg)

    async def smtp_MAIL(self, arg: str | None) -> None:  # noqa: N802
        await self._answer("MAIL", arg)

    async def smtp_RCPT(self, arg: str | None) -> None:  # noqa: N802
        await self._answer("RCPT", arg)

    async def smtp_DATA(self, arg: str) -> None:  # noqa: N802
        await self._answer("DATA", arg)

    async def smtp_QUIT(self, arg: str) -> None:  # noqa: N802
        await self._answer("QUIT", arg)

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        self._mailbox.disconnected.set()


def _authenticate(_server: SMTP, _session: Session, _envelope: Envelope, _mechanism: str, data: Any) -> AuthResult:
    success = data == LoginPassword(USER.encode(), PASSWORD.encode())
    # Not handled: aiosmtpd is to give the answer.
    return AuthResult(success=success, handled=False)


@asynccontextmanager
async def smtp_server(
    moods: Mapping[str, str] | None = None, *, port: int = 0, tls: Any = None, **options: Any
) -> AsyncIterator[Mailbox]:
    """Run a server on the loopback interface.

    Args:
        moods: an answer, ``STALL`` or ``HANG_UP`` for the greeting (``connect``), a command, or the ``message``.
        port: by default one that is free.
        tls: a context for TLS from the first byte.
        options: aiosmtpd's.
    """
    mailbox = Mailbox(moods or {})
    conversations: list[MoodyServer] = []

    def converse() -> MoodyServer:
        conversations.append(MoodyServer(mailbox, authenticator=_authenticate, **options))
        return conversations[-1]

    server = await asyncio.get_running_loop().create_server(converse, "127.0.0.1", port, ssl=tls)
    mailbox.port = server.sockets[0].getsockname()[1]
    try:
        yield mailbox
    finally:
        server.close()
        for conversation in conversations:
            transport = conversation.transport
            # aiosmtpd closes some transports twice, and in CPython 3.11.2 abort() fails on a TLS transport after that.
            if isinstance(transport, asyncio.Transport) and not transport.is_closing():
                transport.abort()
        await server.wait_closed()
