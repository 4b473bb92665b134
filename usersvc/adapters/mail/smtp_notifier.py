"""Mail through an SMTP server."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from html import escape
from importlib.resources import files
from string import Template
from unicodedata import category, normalize

import aiosmtplib

from usersvc.adapters.server_url import Security, SmtpServer
from usersvc.application.errors import Undeliverable
from usersvc.domain.email_address import EmailAddress
from usersvc.domain.errors import ValidationFailed
from usersvc.domain.events import UserRegistered

TIMEOUT, QUIT_TIMEOUT = 20.0, 2.0
"""In seconds: for each step of the conversation, and for the reply to QUIT, which does not matter."""

PERMANENT, SESSION_ERRORS = 500, frozenset({503, 530})
"""Reply codes from 500 on mean that retrying is useless (RFC 5321, section 4.2.1), except those that a missing login or
another missing command causes (RFC 4954, section 6), which the operator can fix."""


class SmtpNotifier:
    """A ``Notifier`` that sends mails to an SMTP server, each over a connection of its own.

    With TLS, the certificate is checked against the authorities that the system, or ``SSL_CERT_FILE``, names.
    """

    def __init__(self, server: SmtpServer, *, sender: str) -> None:
        """Create a notifier; ``sender`` is the address in From, and its domain is that of the message ids."""
        self._server = server
        self._sender = _smtp_address(sender)
        templates = files("usersvc.adapters.mail") / "templates"
        self._text = Template((templates / "welcome.txt").read_text("utf-8"))
        self._html = Template((templates / "welcome.html").read_text("utf-8"))

    async def welcome(self, event: UserRegistered) -> None:
        """Send the mail to a new user (``Notifier.welcome``).

        Raises:
            Undeliverable: the server permanently rejects it, or the address was stored before a rule forbade it.
            aiosmtplib.SMTPException, OSError: any other failure of the server or the network.
        """
        try:
            recipient = _smtp_address(event.email)
        except ValidationFailed:
            raise Undeliverable("the rules for addresses do not allow this one any more") from None
        international = not (self._sender + recipient).isascii()
        # Without the parameter, the envelope and the header must be ASCII (RFC 6531, section 3.4).
        options, encoding = (["SMTPUTF8", "BODY=8BITMIME"], "utf-8") if international else ([], "ascii")
        async with self._conversation() as smtp:
            if international:
                await smtp.ehlo()
                if not smtp.supports_extension("smtputf8"):
                    raise Undeliverable("the mail server does not accept addresses beyond ASCII (SMTPUTF8)")
            await smtp.mail(self._sender, options=options, encoding=encoding)
            refusing = "recipient"
            try:
                await smtp.rcpt(recipient, encoding=encoding)
                refusing = "message"
                await smtp.data(self.message(event))
            except (aiosmtplib.SMTPRecipientRefused, aiosmtplib.SMTPDataError) as refused:
                if refused.code < PERMANENT or refused.code in SESSION_ERRORS:
                    raise
                raise Undeliverable(f"the mail server refuses the {refusing} ({refused.code})") from None

    @asynccontextmanager
    async def _conversation(self) -> AsyncIterator[aiosmtplib.SMTP]:
        """A connection, encrypted and logged in as the settings say.

        Unlike aiosmtplib's own context manager, it does not wait for the reply to QUIT when the caller is cancelled.
        """
        smtp = aiosmtplib.SMTP(
            hostname=self._server.host,
            port=self._server.port,
            use_tls=self._server.security is Security.TLS,
            start_tls=self._server.security is Security.STARTTLS,
            username=self._server.user,
            password=self._server.password,
            # Without a name aiosmtplib looks one up, which can take any time.
            local_hostname=socket.gethostname(),
            timeout=TIMEOUT,
        )
        with closing(smtp):
            await smtp.connect()
            try:
                yield smtp
            except asyncio.CancelledError:
                smtp.close()
                raise
            finally:
                # A failure of QUIT no longer changes the outcome.
                with suppress(aiosmtplib.SMTPException, OSError):
                    await smtp.quit(timeout=QUIT_TIMEOUT)

    def message(self, event: UserRegistered) -> bytes:
        """The mail to a new user, with a text and an HTML part, as it is transmitted (RFC 5322)."""
        # Parts in 7 bits, for servers without 8BITMIME: the address in them may be beyond ASCII.
        message = EmailMessage(policy=SMTP.clone(cte_type="7bit"))
        message["Subject"] = "Welcome!"
        message["Date"] = format_datetime(event.occurred_at)
        # The same for each attempt, so that a mailbox can detect a repetition (RFC 5322, section 3.6.4).
        message["Message-ID"] = f"<welcome.{event.user_id}@{self._sender.rpartition('@')[2]}>"
        # Prevents automatic replies (RFC 3834, section 5).
        message["Auto-Submitted"] = "auto-generated"
        text, html = "this address", "this address"
        if _is_plain(event.email):
            text, html = f"the address {event.email}", f"the address <b>{escape(event.email)}</b>"
        message.set_content(self._text.substitute(address=text))
        message.add_alternative(self._html.substitute(address=html), subtype="html")
        # EmailMessage would decode an address that looks like an encoded word, and encode one beyond ASCII as such,
        # which is not allowed in addresses (RFC 2047, section 5).
        header = f"From: {self._sender}\r\nTo: {_smtp_address(event.email)}\r\n"
        return header.encode() + message.as_bytes()


def _smtp_address(typed: str) -> str:
    """An address as it is sent to an SMTP server: the domain in ASCII, so that only the local part may need SMTPUTF8.

    The syntax has neither line breaks nor other control characters, so it cannot inject headers or commands.
    """
    # In NFC, as RFC 6532 (section 3.1) requires; the case of the local part is kept.
    return f"{normalize('NFC', typed.rpartition('@')[0])}@{EmailAddress(typed).mailbox.rpartition('@')[2]}"


def _is_plain(email: str) -> bool:
    """Whether a mail can safely repeat an address: only letters, digits and common signs before the @.

    The syntax allows sentences in quotation marks, and slashes without them, so a client could have a text or link of
    its choice sent to the address that it registers.
    """
    return all(category(character)[0] in "LMN" or character in "._+-'" for character in email.rpartition("@")[0])
