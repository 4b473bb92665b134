"""A real SMTP server that a scenario can stop and start, and that can reject single addresses."""

import asyncio
import re
import socket
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from aiosmtpd.smtp import Envelope, Session

from features.driver import Trouble
from tests.smtp_server import STALL, Mailbox, MoodyServer

T = TypeVar("T")

CALL_TIMEOUT = 10.0
"""Of stopping or starting, in seconds."""

HOST = "127.0.0.1"

MOODS = {
    Trouble.JUST_NOW: "450 4.2.1 the mailbox is busy",
    Trouble.FOR_GOOD: "550 5.1.1 no such user",
    Trouble.NO_REPLY: STALL,
}

NAME = re.compile(r"<welcome\.(\S+)@")
"""The ``Message-ID`` of a welcome, which holds the id of the user."""


class _Mailbox(Mailbox):
    """Its moods depend on the recipient."""

    async def handle_RCPT(  # noqa: N802  # aiosmtpd's name
        self, server: MoodyServer, _: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        mood = self.moods.get(address)
        if mood is None:
            envelope.rcpt_tos.append(address)
            return "250 OK"
        await server.behave(mood)
        return mood


class _HangUp(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


class SmtpServer:
    """A ``MailServer`` in a thread of its own; it is down at first."""

    def __init__(self) -> None:
        self._mailbox = _Mailbox({})
        self._conversations: list[MoodyServer] = []
        self._server: asyncio.Server | None = None
        self._bound = _bound(0)
        self.port: int = self._bound.getsockname()[1]
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        # A daemon, so that it cannot keep an aborted run from ending.
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.go_down()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._runner.close()
        self._bound.close()

    def go_down(self) -> None:
        self._run(self._go_down())

    def come_up(self) -> None:
        self._run(self._come_up())

    def begin_trouble(self, email: str, trouble: Trouble) -> None:
        self._mailbox.moods[email] = MOODS[trouble]

    def end_trouble(self, email: str) -> None:
        del self._mailbox.moods[email]

    def reset(self) -> None:
        """Start without mails and without trouble."""
        self._mailbox.moods.clear()
        self._mailbox.envelopes.clear()
        self.come_up()

    @property
    def without_reply(self) -> set[str]:
        """The addresses whose mail gets no reply."""
        return {email for email, mood in self._mailbox.moods.items() if mood == STALL}

    def welcomes(self) -> list[tuple[str, str]]:
        """Every mail accepted so far, as its recipient and the id of its user."""
        welcomes = []
        for message in self._mailbox.messages:
            name = NAME.match(message["Message-ID"])
            assert name is not None, message["Message-ID"]
            welcomes.append((str(message["To"]), name[1]))
        return welcomes

    def texts(self) -> list[str]:
        """Each text part of each mail."""
        return [
            part.get_content()
            for message in self._mailbox.messages
            for part in message.walk()
            if part.get_content_maintype() == "text"
        ]

    async def _go_down(self) -> None:
        server, self._server = self._server, None
        if server is None:
            return
        loop = asyncio.get_running_loop()
        for listening in server.sockets:
            loop.remove_reader(listening.fileno())
        # A client that is being accepted while the server closes would wait long for a greeting.
        for _ in range(3):
            await asyncio.sleep(0)
        server.close()
        for conversation in self._conversations:
            if isinstance(conversation.transport, asyncio.Transport):
                conversation.transport.abort()
        self._conversations.clear()
        await server.wait_closed()
        # Reserve the port; connections are refused.
        self._bound = _bound(self.port)

    async def _come_up(self) -> None:
        self._server = await asyncio.get_running_loop().create_server(self._converse, sock=self._bound)

    def _converse(self) -> asyncio.Protocol:
        if self._server is None:
            # Accepted just before it went down.
            return _HangUp()
        self._conversations.append(MoodyServer(self._mailbox))
        return self._conversations[-1]

    def _run(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result(CALL_TIMEOUT)


def _bound(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((HOST, port))
    return bound
