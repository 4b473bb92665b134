"""Mail through an SMTP server."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
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

TIMEOUT = timedelta(seconds=20)
"""For each step of the conversation."""
QUIT_TIMEOUT = timedelta(seconds=2)
"""For the reply to QUIT, which does not matter."""

PERMANENT = 500
"""Reply codes from here on say that a repetition is of no use (RFC 5321, section 4.2.1)."""
ABOUT_THE_SESSION = frozenset({503, 530})
"""But these say that a login is wanted (RFC 4954, section 6), or something else, first: that is for us to mend."""


class SmtpNotifier:
    """A ``Notifier`` that hands mails to an SMTP server, each over a connection of its own.

    The certificate of a server with TLS is checked against the authorities that the system trusts; OpenSSL's
    ``SSL_CERT_FILE`` names others.
    """

    def __init__(self, server: SmtpServer, *, sender: str, timeout: timedelta = TIMEOUT) -> None:
        """Make a notifier.

        Args:
            server: where mail is handed in.
            sender: the address that mails are from; its domain also names them.
            timeout: for each step of the conversation.
        """
        self._server = server
        self._sender = _Path(sender)
        self._timeout = timeout
        templates = files("usersvc.adapters.mail") / "templates"
        self._text = Template((templates / "welcome.txt").read_text("utf-8"))
        self._html = Template((templates / "welcome.html").read_text("utf-8"))

    async def welcome(self, event: UserRegistered) -> None:
        """Send the mail to a new user (``Notifier.welcome``).

        Raises:
            Undeliverable: the server refuses the recipient or the message for good, or the address was stored before a
                rule forbade it.
            aiosmtplib.SMTPException: anything else that an SMTP server can say, or not say.
            OSError: the network has trouble.
        """
        try:
            recipient = _Path(event.email)
        except ValidationFailed:
            raise Undeliverable("the rules for addresses do not allow this one any more") from None
        international = not (recipient.is_ascii and self._sender.is_ascii)
        # Without the parameter, no address beyond ASCII may be in the envelope or the head (RFC 6531, section 3.4).
        options, encoding = (["SMTPUTF8", "BODY=8BITMIME"], "utf-8") if international else ([], "ascii")
        async with self._conversation() as smtp:
            if international:
                await smtp.ehlo()
                if not smtp.supports_extension("smtputf8"):
                    raise Undeliverable("the mail server does not take addresses beyond ASCII (SMTPUTF8)")
            await smtp.mail(self._sender.address, options=options, encoding=encoding)
            try:
                await smtp.rcpt(recipient.address, encoding=encoding)
            except aiosmtplib.SMTPRecipientRefused as refused:
                if _is_final(refused.code):
                    raise Undeliverable(f"the mail server refuses the recipient ({refused.code})") from None
                raise
            try:
                await smtp.data(self.message(event))
            except aiosmtplib.SMTPDataError as refused:
                if _is_final(refused.code):
                    raise Undeliverable(f"the mail server refuses the message ({refused.code})") from None
                raise

    @asynccontextmanager
    async def _conversation(self) -> AsyncIterator[aiosmtplib.SMTP]:
        """A connection, protected and logged in as the settings say; it is closed at once when the caller is cancelled.

        aiosmtplib's own context would wait for an answer to QUIT even then, and a server that has hung so far would
        keep a stop waiting.
        """
        smtp = aiosmtplib.SMTP(
            hostname=self._server.host,
            port=self._server.port,
            use_tls=self._server.security is Security.TLS,
            start_tls=self._server.security is Security.STARTTLS,
            username=self._server.user,
            password=self._server.password,
            # Without a name aiosmtplib looks one up, for as long as the resolver likes.
            local_hostname=socket.gethostname(),
            timeout=self._timeout.total_seconds(),
        )
        await smtp.connect()
        try:
            try:
                yield smtp
            except (Undeliverable, aiosmtplib.SMTPResponseException):
                await _quit(smtp)
                raise
            await _quit(smtp)
        finally:
            smtp.close()

    def message(self, event: UserRegistered) -> bytes:
        """The mail to a new user, with a text and an HTML part, as it goes over the wire (RFC 5322)."""
        # Parts in 7 bits, for servers without 8BITMIME: the address shown in them may be beyond ASCII.
        message = EmailMessage(policy=SMTP.clone(cte_type="7bit"))
        message["Subject"] = "Welcome!"
        message["Date"] = format_datetime(event.occurred_at)
        # The same over retries, so that a mailbox can tell a repetition (RFC 5322, section 3.6.4).
        message["Message-ID"] = f"<welcome.{event.user_id}@{self._sender.domain}>"
        # No vacation notice answers it (RFC 3834, section 5).
        message["Auto-Submitted"] = "auto-generated"
        text, html = "this address", "this address"
        if _is_plain(event.email):
            text, html = f"the address {event.email}", f"the address <b>{escape(event.email)}</b>"
        message.set_content(self._text.substitute(address=text))
        message.add_alternative(self._html.substitute(address=html), subtype="html")
        # EmailMessage takes an address for text to be read: it decodes one that looks like an encoded word, which is
        # another address then, and writes one beyond ASCII as an encoded word, which is none (RFC 2047, section 5).
        head = f"From: {self._sender.address}\r\nTo: {_Path(event.email).address}\r\n"
        return head.encode() + message.as_bytes()


class _Path:
    """An address as SMTP servers know it: the domain in ASCII, so that only the local part may need SMTPUTF8.

    The syntax has neither line breaks nor other control characters, so it cannot add to a head or a command.
    """

    def __init__(self, typed: str) -> None:
        self.domain = EmailAddress(typed).mailbox.rpartition("@")[2]
        # In NFC, as RFC 6532 (section 3.1) wants it; the case is the owner's.
        self.address = f"{normalize('NFC', typed.rpartition('@')[0])}@{self.domain}"
        self.is_ascii = self.address.isascii()


def _is_plain(email: str) -> bool:
    """Whether an address can be repeated in a mail: letters, digits and the usual signs alone before the @.

    The syntax allows sentences in quotation marks, and slashes without them, so that anybody who registers an address
    could have a text or a link of their choice sent to it.
    """
    return all(category(character)[0] in "LMN" or character in "._+-'" for character in email.rpartition("@")[0])


def _is_final(code: int) -> bool:
    return code >= PERMANENT and code not in ABOUT_THE_SESSION


async def _quit(smtp: aiosmtplib.SMTP) -> None:
    """Say QUIT (RFC 5321, section 4.1.1.10); whatever happens now, the mail has been taken or refused already."""
    with suppress(aiosmtplib.SMTPException, OSError):
        await smtp.quit(timeout=QUIT_TIMEOUT.total_seconds())
