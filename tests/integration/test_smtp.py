"""Mail through a real SMTP server, which fails in every way that servers and networks do."""

import asyncio
import re
import ssl
from datetime import UTC, datetime
from email.message import EmailMessage
from html import unescape
from pathlib import Path
from typing import Any
from uuid import UUID

import aiosmtplib
import pytest
from aiosmtplib.email import quote_address
from hypothesis import example, given
from hypothesis import strategies as st

from tests.smtp_server import HANG_UP, PASSWORD, STALL, USER, Mailbox, parsed, smtp_server
from usersvc.adapters.mail import SmtpNotifier, smtp_notifier
from usersvc.adapters.server_url import Security, SmtpServer
from usersvc.application.errors import Undeliverable
from usersvc.domain.email_address import EmailAddress
from usersvc.domain.errors import ValidationFailed
from usersvc.domain.events import UserRegistered

SENDER = "Service@example.com"
ID = UUID(int=7)

CERTIFICATE = Path(__file__).with_name("localhost.pem")
"""Self-signed, for localhost, valid until 2120, with its key; trusted only by the tests that use ``_trusted``."""


def event(email: str = "alice@example.com") -> UserRegistered:
    return UserRegistered(ID, email, datetime(2026, 1, 31, 9, 30, tzinfo=UTC))


def notifier(
    mailbox: Mailbox, security: Security = Security.NONE, *login: str, sender: str = SENDER, host: str = "localhost"
) -> SmtpNotifier:
    return SmtpNotifier(SmtpServer(host, mailbox.port, security, *login), sender=sender)


def tls_options(security: Security) -> dict[str, Any]:
    """What makes ``smtp_server`` offer TLS in this way."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    if security is Security.TLS:
        return {"tls": context}
    return {"tls_context": context, "require_starttls": True}


OFFLINE = SmtpNotifier(SmtpServer("localhost", 1), sender=SENDER)


@pytest.fixture
def _trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smtp_notifier, "TIMEOUT", 0.2)
    monkeypatch.setattr(smtp_notifier, "QUIT_TIMEOUT", 0.2)


async def test_a_mail_is_sent() -> None:
    async with smtp_server() as mailbox:
        await notifier(mailbox).welcome(event())
        await mailbox.disconnected.wait()

    [envelope], [message] = mailbox.envelopes, mailbox.messages
    assert (envelope.mail_from, envelope.rcpt_tos) == (SENDER, ["alice@example.com"])
    assert mailbox.commands == ["connect", "EHLO", "MAIL", "RCPT", "DATA", "QUIT"]
    assert {
        "From": SENDER,
        "To": "alice@example.com",
        "Subject": "Welcome!",
        "Date": "Sat, 31 Jan 2026 09:30:00 +0000",
        # The same for each attempt.
        "Message-ID": f"<welcome.{ID}@example.com>",
        "Auto-Submitted": "auto-generated",
        "MIME-Version": "1.0",
    }.items() <= dict(message.items()).items()
    assert message.get_content_type() == "multipart/alternative"
    assert [part.get_content_type() for part in message.iter_parts()] == ["text/plain", "text/html"]
    assert "You have registered with the address alice@example.com." in content(message, "plain")
    assert "You have registered with the address <b>alice@example.com</b>." in content(message, "html")
    assert not message.defects


def content(message: EmailMessage, kind: str) -> str:
    part = message.get_body([kind])
    assert part is not None
    text: str = part.get_content()
    return text


@pytest.mark.usefixtures("_trusted")
@pytest.mark.parametrize("login", [(), (USER, PASSWORD)])
@pytest.mark.parametrize("security", [Security.TLS, Security.STARTTLS])
async def test_a_mail_is_sent_with_tls_and_a_login(security: Security, login: tuple[str, ...]) -> None:
    options = tls_options(security) | {"auth_require_tls": False}
    async with smtp_server(enable_SMTPUTF8=True, **options) as mailbox:
        await notifier(mailbox, security, *login).welcome(event("jörg@example.com"))
    assert [envelope.rcpt_tos for envelope in mailbox.envelopes] == [["jörg@example.com"]]
    assert ("STARTTLS" in mailbox.commands) == (security is Security.STARTTLS)
    assert ("AUTH" in mailbox.commands) == bool(login)


@pytest.mark.parametrize("security", [Security.TLS, Security.STARTTLS])
@pytest.mark.parametrize(("authority", "host"), [(None, "localhost"), (str(CERTIFICATE), "127.0.0.1")])
async def test_nothing_is_sent_to_a_server_with_an_untrusted_certificate_or_one_of_another_name(
    security: Security, authority: str | None, host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if authority is not None:
        monkeypatch.setenv("SSL_CERT_FILE", authority)
    async with smtp_server(**tls_options(security)) as mailbox:
        with pytest.raises(OSError, match="certificate verify failed"):
            await notifier(mailbox, security, USER, PASSWORD, host=host).welcome(event())
    assert not {"AUTH", "MAIL"} & set(mailbox.commands)


@pytest.mark.parametrize(
    ("security", "options", "password", "error"),
    [
        (Security.STARTTLS, {"auth_require_tls": False}, PASSWORD, "STARTTLS extension not supported"),
        (Security.NONE, {}, PASSWORD, "AUTH extension is not supported"),
        (Security.NONE, {"auth_require_tls": False}, "a wrong one", "535"),
    ],
)
async def test_a_server_that_does_not_fit_the_settings_is_retried_without_sending_anything(
    security: Security, options: dict[str, Any], password: str, error: str
) -> None:
    async with smtp_server(**options) as mailbox:
        with pytest.raises(aiosmtplib.SMTPException, match=error) as refused:
            await notifier(mailbox, security, USER, password).welcome(event())
    assert "MAIL" not in mailbox.commands
    assert security is Security.NONE or "AUTH" not in mailbox.commands
    assert password not in str(refused.value)


STAGES = ["connect", "EHLO", "MAIL", "RCPT", "DATA", "message"]
LATER = ("421 4.3.2 going down", "450 4.2.0 later", "452 4.2.2 full")


@pytest.mark.parametrize(
    ("stage", "reply"),
    [
        ("EHLO", LATER[0]),
        *((stage, reply) for stage in STAGES if stage != "EHLO" for reply in LATER),
        # These are not about this mail.
        *((stage, reply) for stage in ("connect", "MAIL") for reply in ("550 5.7.1 not you", "554 5.7.1 no service")),
        ("RCPT", "530 5.7.0 Authentication required"),
        ("RCPT", "not a reply"),
    ],
)
async def test_a_temporary_refusal_is_retried(stage: str, reply: str) -> None:
    async with smtp_server({stage: reply}) as mailbox:
        with pytest.raises((aiosmtplib.SMTPException, OSError)):
            await notifier(mailbox).welcome(event())
        assert mailbox.envelopes == []
        mailbox.moods.clear()
        await notifier(mailbox).welcome(event())
    assert len(mailbox.envelopes) == 1


@pytest.mark.parametrize("reply", ["450 not now", "502 what?"])
async def test_a_server_that_knows_only_helo_gets_mails_to_ascii_addresses(reply: str) -> None:
    async with smtp_server({"EHLO": reply}) as mailbox:
        await notifier(mailbox).welcome(event())
        with pytest.raises(aiosmtplib.SMTPHeloError):
            await notifier(mailbox).welcome(event("jörg@example.com"))
    assert len(mailbox.envelopes) == mailbox.commands.count("MAIL") == 1


@pytest.mark.parametrize(("stage", "what"), [("RCPT", "recipient"), ("DATA", "message"), ("message", "message")])
async def test_a_permanent_refusal_is_final(stage: str, what: str) -> None:
    async with smtp_server({stage: "550 5.1.1 no alice@example.com here"}) as mailbox:
        with pytest.raises(Undeliverable) as refused:
            await notifier(mailbox).welcome(event())
        await mailbox.disconnected.wait()
    assert str(refused.value) == f"the mail server refuses the {what} (550)"
    assert refused.value.__suppress_context__
    assert mailbox.commands[-1] == "QUIT"


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize(("mood", "error"), [(STALL, TimeoutError), (HANG_UP, OSError)])
@pytest.mark.parametrize("stage", STAGES)
async def test_a_server_that_stalls_or_hangs_up_is_retried(stage: str, mood: str, error: type[Exception]) -> None:
    async with smtp_server({stage: mood}) as mailbox:
        with pytest.raises(error, match=r"."):
            await notifier(mailbox).welcome(event())
        await mailbox.disconnected.wait()


@pytest.mark.usefixtures("_impatient")
@pytest.mark.parametrize("mood", [STALL, HANG_UP, "500 what?"])
async def test_a_failing_quit_does_not_change_the_outcome(mood: str) -> None:
    async with smtp_server({"QUIT": mood}) as mailbox:
        await notifier(mailbox).welcome(event())
        mailbox.moods["RCPT"] = "550 no such mailbox"
        with pytest.raises(Undeliverable):
            await notifier(mailbox).welcome(event())
        await mailbox.disconnected.wait()
    assert len(mailbox.envelopes) == 1


@pytest.mark.parametrize("stage", STAGES)
async def test_a_cancelled_delivery_does_not_wait_for_the_server(stage: str) -> None:
    async with smtp_server({stage: STALL, "QUIT": STALL}) as mailbox:
        delivery = asyncio.create_task(notifier(mailbox).welcome(event()))
        await mailbox.stalled.wait()
        delivery.cancel()
        await asyncio.wait([delivery], timeout=smtp_notifier.QUIT_TIMEOUT / 2)
        if stage == "connect":
            # Once may not be enough there: up to Python 3.11, asyncio.wait_for can swallow it.
            delivery.cancel()
            await asyncio.wait([delivery])
        assert delivery.cancelled()
        await mailbox.disconnected.wait()
    assert "QUIT" not in mailbox.commands


async def test_a_domain_beyond_ascii_is_sent_in_ascii() -> None:
    async with smtp_server() as mailbox:
        await notifier(mailbox, sender="service@bücher.example").welcome(event("Alice@BÜCHER.example"))

    [envelope], [message] = mailbox.envelopes, mailbox.messages
    assert envelope.mail_from == "service@xn--bcher-kva.example"
    assert envelope.rcpt_tos == ["Alice@xn--bcher-kva.example"]
    assert (envelope.original_content or b"\xff").isascii()
    assert message["To"] == "Alice@xn--bcher-kva.example"
    assert message["Message-ID"].endswith("@xn--bcher-kva.example>")
    assert "You have registered with the address Alice@BÜCHER.example." in content(message, "plain")


@pytest.mark.parametrize(
    ("email", "sender"), [("jörg@example.com", SENDER), ("alice@example.com", "größe@example.com")]
)
async def test_a_local_part_beyond_ascii_needs_smtputf8(email: str, sender: str) -> None:
    async with smtp_server(enable_SMTPUTF8=True) as mailbox:
        await notifier(mailbox, sender=sender).welcome(event(email))
    [envelope], [message] = mailbox.envelopes, mailbox.messages
    assert (envelope.mail_from, envelope.rcpt_tos) == (sender, [email])
    assert {"SMTPUTF8", "BODY=8BITMIME"} <= set(envelope.mail_options)
    assert f"From: {sender}\r\nTo: {email}\r\n".encode() in (envelope.original_content or b"")
    assert f"with the address {email}." in content(message, "plain")


async def test_an_address_beyond_ascii_is_undeliverable_without_smtputf8() -> None:
    async with smtp_server(enable_SMTPUTF8=False) as mailbox:
        with pytest.raises(Undeliverable, match="SMTPUTF8"):
            await notifier(mailbox).welcome(event("jörg@example.com"))
        await mailbox.disconnected.wait()
    assert mailbox.commands == ["connect", "EHLO", "QUIT"]


@pytest.mark.parametrize(
    ("email", "shown"),
    [
        ("alice@example.com", "the address alice@example.com"),
        ("o'neil.x+tag_1-2@BÜCHER.example", "the address o'neil.x+tag_1-2@BÜCHER.example"),
        ("नमस्ते@example.com", "the address नमस्ते@example.com"),
        ('"Acct locked: http://evil/"@example.com', "this address"),
        ("evil.example/locked?a=b@example.com", "this address"),
        ('"<script>alert(1)</script>&"@example.com', "this address"),
    ],
)
def test_an_address_that_could_be_a_text_or_a_link_is_not_repeated(email: str, shown: str) -> None:
    message = parsed(OFFLINE.message(event(email)))
    assert f"You have registered with {shown}." in content(message, "plain")
    text = unescape(re.sub("</?b>", "", content(message, "html")))
    assert f"You have registered with {shown}." in text
    assert shown != "this address" or email.rpartition("@")[0] not in content(message, "plain") + text


async def test_a_mail_to_an_address_that_the_rules_no_longer_allow_is_undeliverable() -> None:
    async with smtp_server() as mailbox:
        with pytest.raises(Undeliverable, match="do not allow"):
            await notifier(mailbox).welcome(event("alice@[127.0.0.1]"))
    assert mailbox.commands == []


ATOMS = st.text("abzAZ09!#$%&'*+/=?^_`{|}~-.äöüßéе中文١\u0301", min_size=1, max_size=64)
QUOTED = st.text('ab <>()[]:;@,."\\=?_-$é中', max_size=40).map(
    lambda text: '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'
)
DOMAINS = st.sampled_from(
    ["example.com", "bücher.example", "例え.jp", "[8.8.8.8]", "[IPv6:2606:4700::1]", "BÜCHER.Example"]
)
ADDRESSES = st.tuples(ATOMS | QUOTED | st.text(max_size=64), DOMAINS).map("@".join)


@given(ADDRESSES)
@example("a\r\nBcc: b@example.com@example.com")
@example('"a\r\nBcc: b"@example.com')
@example('"\\\r"@example.com')
@example("=?utf-8?q?a=0D=0ABcc=3A_b?=@example.com")
@example("=?utf-8?q?x?=@example.com")
@example("$email.${email}@example.com")
@example("a\x85b@example.com")
@example("a\u2028b@example.com")
@example("a\udcffb@example.com")
def test_no_valid_address_injects_headers(email: str) -> None:
    try:
        mailbox = EmailAddress(email).mailbox
    except ValidationFailed:
        return
    raw = OFFLINE.message(event(email))
    head, _, _ = raw.partition(b"\r\n\r\n")

    lines = head.decode().split("\r\n")
    assert not {"\r", "\n"} & set("".join(lines))
    names = [line.partition(":")[0] for line in lines if not line.startswith((" ", "\t"))]
    assert sorted(names) == sorted(
        ["From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "MIME-Version", "Content-Type"]
    )
    assert all(len(line) <= 998 for line in raw.split(b"\r\n"))
    to = lines[1].removeprefix("To: ")
    assert EmailAddress(to).mailbox == mailbox
    # The envelope has the same address as the header.
    assert EmailAddress(quote_address(to)[1:-1]).mailbox == mailbox
    message = parsed(raw)
    assert (email in content(message, "plain")) == smtp_notifier._is_plain(email)
    # Python's own parser decodes what must not be decoded (RFC 2047, section 5), and fails at the result.
    if "=?" not in email:
        assert len(message["To"].addresses) == 1
