"""A real SMTP server, which a scenario can take down and put up again, and which can single people out."""

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

TIME_LIMIT = 10.0
"""For going down or coming up, in seconds."""

HOST = "127.0.0.1"

MOODS = {
    Trouble.JUST_NOW: "450 4.2.1 the mailbox is busy",
    Trouble.FOR_GOOD: "550 5.1.1 nobody of this name",
    Trouble.NO_ANSWER: STALL,
}

NAME = re.compile(r"<welcome\.(\S+)@")
"""The ``Message-ID`` of a welcome, which holds the id of the user."""


class _Mailbox(Mailbox):
    """Its moods are towards recipients."""

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
        # A daemon, so that a run that breaks off is not kept from ending.
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

    def begin_anew(self) -> None:
        """Come up without a mail and without a trouble."""
        self._mailbox.moods.clear()
        self._mailbox.envelopes.clear()
        self.come_up()

    @property
    def kept_waiting(self) -> set[str]:
        """Whose mail gets no answer."""
        return {email for email, mood in self._mailbox.moods.items() if mood == STALL}

    def welcomes(self) -> list[tuple[str, str]]:
        """Every mail taken so far, as its recipient and the id of the user that it is about."""
        welcomes = []
        for message in self._mailbox.messages:
            name = NAME.match(message["Message-ID"])
            assert name is not None, message["Message-ID"]
            welcomes.append((str(message["To"]), name[1]))
        return welcomes

    def words(self) -> list[str]:
        """What a person reads in each of the mails, in each of the forms that it comes in."""
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
        # A server that closes while it accepts somebody forgets him, and he waits for a greeting for long.
        for _ in range(3):
            await asyncio.sleep(0)
        server.close()
        for conversation in self._conversations:
            if isinstance(conversation.transport, asyncio.Transport):
                conversation.transport.abort()
        self._conversations.clear()
        await server.wait_closed()
        # Nobody else gets the port meanwhile, and nobody answers there.
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
        return asyncio.run_coroutine_threadsafe(call, self._loop).result(TIME_LIMIT)


def _bound(port: int) -> socket.socket:
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    bound.bind((HOST, port))
    return bound
