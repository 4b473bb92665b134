"""Mail through a real SMTP server, which behaves as badly as servers and networks do."""

import asyncio
import os
import re
import ssl
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from email.headerregistry import AddressHeader
from email.message import EmailMessage
from email.parser import BytesParser
from email.policy import SMTPUTF8, default
from html import unescape
from pathlib import Path
from uuid import UUID

import aiosmtplib
import pytest
from aiosmtplib.email import quote_address
from hypothesis import example, given
from hypothesis import strategies as st

from tests.e2e.launch import SHORT_RETRY
from tests.e2e.server import DEADLINE, running
from tests.smtp_server import HANG_UP, PASSWORD, STALL, USER, Mailbox, smtp_server
from usersvc.adapters.mail.smtp_notifier import QUIT_TIMEOUT, SmtpNotifier, _is_plain
from usersvc.adapters.server_url import Security, SmtpServer
from usersvc.application.errors import Undeliverable
from usersvc.domain.email_address import EmailAddress
from usersvc.domain.errors import ValidationFailed
from usersvc.domain.events import UserRegistered

SENDER = "Service@example.com"
ID = UUID(int=7)
TOO_LONG = timedelta(seconds=0.2)

CERTIFICATE = Path(__file__).with_name("localhost.pem")
"""Self-signed, for localhost, valid until 2120, with its key; nobody trusts it but the tests that say so."""


def event(email: str = "alice@example.com") -> UserRegistered:
    return UserRegistered(ID, email, datetime(2026, 1, 31, 9, 30, tzinfo=UTC))


def notifier(
    mailbox: Mailbox,
    security: Security = Security.NONE,
    *,
    sender: str = SENDER,
    user: str | None = None,
    password: str | None = None,
    timeout: timedelta = timedelta(seconds=10),
) -> SmtpNotifier:
    server = SmtpServer("localhost", mailbox.port, security, user, password)
    return SmtpNotifier(server, sender=sender, timeout=timeout)


@pytest.fixture
def certified() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(CERTIFICATE)
    return context


@pytest.fixture
def _trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(CERTIFICATE))


async def test_a_mail_is_handed_in() -> None:
    async with smtp_server() as mailbox:
        await notifier(mailbox).welcome(event())
        await mailbox.disconnected.wait()

    [envelope] = mailbox.envelopes
    assert (envelope.mail_from, envelope.rcpt_tos) == (SENDER, ["alice@example.com"])
    assert mailbox.commands == ["connect", "EHLO", "MAIL", "RCPT", "DATA", "QUIT"]


async def test_a_mail_says_what_it_should() -> None:
    async with smtp_server() as mailbox:
        await notifier(mailbox).welcome(event())

    [message] = mailbox.messages
    assert message["From"] == SENDER
    assert message["To"] == "alice@example.com"
    assert message["Subject"] == "Welcome!"
    assert message["Date"] == "Sat, 31 Jan 2026 09:30:00 +0000"
    assert message["Message-ID"] == f"<welcome.{ID}@example.com>"
    assert message["Auto-Submitted"] == "auto-generated"
    assert message["MIME-Version"] == "1.0"
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


async def test_a_repetition_has_the_same_message_id_and_another_user_another() -> None:
    async with smtp_server({"message": "451 later"}) as mailbox:
        told = notifier(mailbox)
        with pytest.raises(aiosmtplib.SMTPDataError):
            await told.welcome(event())
        mailbox.moods.clear()
        await told.welcome(event())
        await told.welcome(event())
        await told.welcome(UserRegistered(UUID(int=8), "bob@example.com", event().occurred_at))

    first, second, bobs = (message["Message-ID"] for message in mailbox.messages)
    assert first == second != bobs


@pytest.mark.usefixtures("_trusted")
async def test_tls_from_the_first_byte(certified: ssl.SSLContext) -> None:
    async with smtp_server(tls=certified) as mailbox:
        await notifier(mailbox, Security.TLS).welcome(event())
    assert len(mailbox.envelopes) == 1


@pytest.mark.usefixtures("_trusted")
async def test_starttls(certified: ssl.SSLContext) -> None:
    async with smtp_server(tls_context=certified, require_starttls=True) as mailbox:
        await notifier(mailbox, Security.STARTTLS).welcome(event())
    assert mailbox.commands == ["connect", "EHLO", "STARTTLS", "EHLO", "MAIL", "RCPT", "DATA", "QUIT"]
    assert len(mailbox.envelopes) == 1


@pytest.mark.parametrize("security", [Security.TLS, Security.STARTTLS])
async def test_a_server_whose_certificate_nobody_vouches_for_gets_nothing(
    security: Security, certified: ssl.SSLContext
) -> None:
    implicit, explicit = (certified, None) if security is Security.TLS else (None, certified)
    async with smtp_server(tls=implicit, tls_context=explicit) as mailbox:
        with pytest.raises(OSError, match="certificate verify failed"):
            await notifier(mailbox, security, user=USER, password=PASSWORD).welcome(event())
    assert not {"AUTH", "MAIL"} & set(mailbox.commands)


@pytest.mark.usefixtures("_trusted")
@pytest.mark.parametrize("security", [Security.TLS, Security.STARTTLS])
async def test_a_certificate_for_another_name_does_not_count(security: Security, certified: ssl.SSLContext) -> None:
    implicit, explicit = (certified, None) if security is Security.TLS else (None, certified)
    async with smtp_server(tls=implicit, tls_context=explicit) as mailbox:
        server = SmtpServer("127.0.0.1", mailbox.port, security, USER, PASSWORD)
        with pytest.raises(OSError, match="certificate verify failed"):
            await SmtpNotifier(server, sender=SENDER).welcome(event())
    assert not {"AUTH", "MAIL"} & set(mailbox.commands)


async def test_a_server_that_does_not_offer_starttls_gets_nothing() -> None:
    async with smtp_server(auth_require_tls=False) as mailbox:
        with pytest.raises(aiosmtplib.SMTPException, match="STARTTLS extension not supported"):
            await notifier(mailbox, Security.STARTTLS, user=USER, password=PASSWORD).welcome(event())
    assert mailbox.commands == ["connect", "EHLO"]


@pytest.mark.usefixtures("_trusted")
async def test_a_login(certified: ssl.SSLContext) -> None:
    async with smtp_server(tls_context=certified, require_starttls=True, auth_required=True) as mailbox:
        await notifier(mailbox, Security.STARTTLS, user=USER, password=PASSWORD).welcome(event())
    assert len(mailbox.envelopes) == 1


@pytest.mark.usefixtures("_trusted")
async def test_a_login_that_is_refused_is_ours_to_mend_and_tried_again(certified: ssl.SSLContext) -> None:
    async with smtp_server(tls=certified, auth_require_tls=False) as mailbox:
        with pytest.raises(aiosmtplib.SMTPAuthenticationError) as refused:
            await notifier(mailbox, Security.TLS, user=USER, password="a wrong one").welcome(event())
    assert refused.value.code == 535
    assert "a wrong one" not in str(refused.value)
    assert mailbox.envelopes == []


@pytest.mark.usefixtures("_trusted")
async def test_a_login_that_is_missing_is_ours_to_mend_and_tried_again(certified: ssl.SSLContext) -> None:
    async with smtp_server({"RCPT": "530 5.7.0 Authentication required"}, tls=certified) as mailbox:
        with pytest.raises(aiosmtplib.SMTPRecipientRefused):
            await notifier(mailbox, Security.TLS).welcome(event())


async def test_a_server_without_logins_gets_nothing_when_there_is_one_to_do() -> None:
    async with smtp_server() as mailbox:
        with pytest.raises(aiosmtplib.SMTPException, match="AUTH extension is not supported"):
            await notifier(mailbox, user=USER, password=PASSWORD).welcome(event())
    assert "MAIL" not in mailbox.commands


STAGES = ["connect", "EHLO", "MAIL", "RCPT", "DATA", "message"]


@pytest.mark.parametrize(
    ("stage", "reply"),
    [
        *((stage, "421 4.3.2 going down") for stage in STAGES),
        *((stage, reply) for stage in STAGES if stage != "EHLO" for reply in ("450 4.2.0 later", "452 4.2.2 full")),
    ],
)
async def test_what_a_server_refuses_for_now_is_tried_again(stage: str, reply: str) -> None:
    async with smtp_server({stage: reply}) as mailbox:
        with pytest.raises((aiosmtplib.SMTPException, OSError)):
            await notifier(mailbox).welcome(event())
        assert mailbox.envelopes == []
        mailbox.moods.clear()
        await notifier(mailbox).welcome(event())
    assert len(mailbox.envelopes) == 1


@pytest.mark.parametrize("reply", ["450 not now", "502 what?"])
async def test_a_server_that_knows_only_helo_gets_the_mail(reply: str) -> None:
    async with smtp_server({"EHLO": reply}) as mailbox:
        await notifier(mailbox).welcome(event())
    assert len(mailbox.envelopes) == 1


@pytest.mark.parametrize("reply", ["421 going down", "450 not now", "502 what?"])
async def test_such_a_server_is_tried_again_for_an_address_beyond_ascii(reply: str) -> None:
    async with smtp_server({"EHLO": reply}) as mailbox:
        with pytest.raises(aiosmtplib.SMTPHeloError):
            await notifier(mailbox).welcome(event("jörg@example.com"))
    assert "MAIL" not in mailbox.commands


@pytest.mark.parametrize("stage", ["connect", "MAIL"])
@pytest.mark.parametrize("reply", ["550 5.7.1 not you", "554 5.7.1 no service"])
async def test_what_a_server_has_against_us_is_tried_again(stage: str, reply: str) -> None:
    async with smtp_server({stage: reply}) as mailbox:
        with pytest.raises(aiosmtplib.SMTPResponseException):
            await notifier(mailbox).welcome(event())


@pytest.mark.parametrize(
    ("stage", "told"),
    [
        ("RCPT", "the mail server refuses the recipient (550)"),
        ("DATA", "the mail server refuses the message (550)"),
        ("message", "the mail server refuses the message (550)"),
    ],
)
async def test_what_a_server_refuses_for_good_is_final(stage: str, told: str) -> None:
    async with smtp_server({stage: "550 5.1.1 no alice@example.com here"}) as mailbox:
        with pytest.raises(Undeliverable) as refused:
            await notifier(mailbox).welcome(event())
        await mailbox.disconnected.wait()
    assert str(refused.value) == told
    assert refused.value.__suppress_context__
    assert mailbox.commands[-1] == "QUIT"


@pytest.mark.parametrize("stage", STAGES)
async def test_a_server_that_stalls_is_given_up(stage: str) -> None:
    async with smtp_server({stage: STALL}) as mailbox:
        with pytest.raises(TimeoutError):
            await notifier(mailbox, timeout=TOO_LONG).welcome(event())
        await mailbox.disconnected.wait()


@pytest.mark.parametrize("stage", STAGES)
async def test_a_server_that_hangs_up_is_told(stage: str) -> None:
    async with smtp_server({stage: HANG_UP}) as mailbox:
        with pytest.raises(OSError, match=r"."):
            await notifier(mailbox).welcome(event())


@pytest.mark.parametrize("mood", [STALL, HANG_UP, "500 what?"])
async def test_a_mail_that_was_taken_is_sent_whatever_happens_to_the_farewell(
    mood: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("usersvc.adapters.mail.smtp_notifier.QUIT_TIMEOUT", TOO_LONG)
    async with smtp_server({"QUIT": mood}) as mailbox:
        await notifier(mailbox).welcome(event())
        await mailbox.disconnected.wait()
    assert len(mailbox.envelopes) == 1


@pytest.mark.parametrize("mood", [STALL, HANG_UP])
async def test_a_refusal_counts_whatever_happens_to_the_farewell(mood: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("usersvc.adapters.mail.smtp_notifier.QUIT_TIMEOUT", TOO_LONG)
    async with smtp_server({"RCPT": "550 nobody", "QUIT": mood}) as mailbox:
        with pytest.raises(Undeliverable):
            await notifier(mailbox).welcome(event())


@pytest.mark.parametrize("stage", STAGES)
async def test_breaking_off_waits_for_nothing(stage: str) -> None:
    async with smtp_server({stage: STALL, "QUIT": STALL}) as mailbox:
        delivery = asyncio.create_task(notifier(mailbox, timeout=timedelta(hours=1)).welcome(event()))
        await mailbox.stalled.wait()
        delivery.cancel()
        await asyncio.wait([delivery], timeout=QUIT_TIMEOUT.total_seconds() / 2)
        if stage == "connect":
            # Once may not be enough there: up to Python 3.11, asyncio.wait_for can swallow it.
            delivery.cancel()
            await asyncio.wait([delivery])
        assert delivery.cancelled()
        await mailbox.disconnected.wait()
    assert "QUIT" not in mailbox.commands


async def test_a_server_that_is_not_there_is_told() -> None:
    async with smtp_server() as mailbox:
        pass
    with pytest.raises(OSError, match="Error connecting to localhost"):
        await notifier(mailbox).welcome(event())


async def test_an_answer_that_is_none_is_tried_again() -> None:
    async with smtp_server({"RCPT": "yes, of course"}) as mailbox:
        with pytest.raises(aiosmtplib.SMTPException):
            await notifier(mailbox).welcome(event())


async def test_a_domain_beyond_ascii_is_sent_in_ascii() -> None:
    async with smtp_server() as mailbox:
        await notifier(mailbox, sender="service@bücher.example").welcome(event("Alice@BÜCHER.example"))

    [envelope], [message] = mailbox.envelopes, mailbox.messages
    assert (envelope.mail_from, envelope.rcpt_tos) == (
        "service@xn--bcher-kva.example",
        ["Alice@xn--bcher-kva.example"],
    )
    assert envelope.original_content is not None
    assert envelope.original_content.isascii()
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
    assert envelope.original_content is not None
    assert f"From: {sender}\r\nTo: {email}\r\n".encode() in envelope.original_content
    assert f"with the address {email}." in content(message, "plain")


async def test_a_server_without_smtputf8_is_not_asked_to_take_such_an_address() -> None:
    async with smtp_server(enable_SMTPUTF8=False) as mailbox:
        with pytest.raises(Undeliverable, match="SMTPUTF8"):
            await notifier(mailbox).welcome(event("jörg@example.com"))
        await mailbox.disconnected.wait()
    assert mailbox.commands == ["connect", "EHLO", "QUIT"]


@pytest.mark.usefixtures("_trusted")
async def test_smtputf8_is_noticed_behind_starttls_as_well(certified: ssl.SSLContext) -> None:
    async with smtp_server(enable_SMTPUTF8=True, tls_context=certified, require_starttls=True) as mailbox:
        await notifier(mailbox, Security.STARTTLS).welcome(event("jörg@example.com"))
    assert [envelope.rcpt_tos for envelope in mailbox.envelopes] == [["jörg@example.com"]]


@pytest.mark.parametrize(
    "email",
    [
        '"a b"@example.com',
        '"a\\"b\\\\c"@example.com',
        '"a@b"@example.com',
        '"<>,;:()"@example.com',
        "o'neil+x@example.com",
        "alice@[8.8.8.8]",
        "alice@[IPv6:2606:4700:4700::1111]",
        f"{'x' * 64}@{'.'.join(['y' * 60] * 3)}.com",
    ],
)
async def test_unusual_addresses_are_kept(email: str) -> None:
    async with smtp_server(enable_SMTPUTF8=True) as mailbox:
        await notifier(mailbox).welcome(event(email))
    [envelope] = mailbox.envelopes
    [recipient] = envelope.rcpt_tos
    assert recipient.lower() == email.lower()
    assert envelope.original_content is not None
    assert f"To: {recipient}\r\n".encode() in envelope.original_content


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
def test_an_address_that_can_be_a_text_or_a_link_is_not_repeated(email: str, shown: str) -> None:
    message = BytesParser(EmailMessage, policy=default).parsebytes(offline().message(event(email)))
    assert isinstance(message, EmailMessage)
    assert f"You have registered with {shown}." in content(message, "plain")
    text = unescape(re.sub("</?b>", "", content(message, "html")))
    assert f"You have registered with {shown}." in text
    assert shown != "this address" or email.rpartition("@")[0] not in content(message, "plain") + text


async def test_a_mail_to_an_address_that_the_rules_no_longer_allow_is_undeliverable() -> None:
    async with smtp_server() as mailbox:
        with pytest.raises(Undeliverable, match="do not allow"):
            await notifier(mailbox).welcome(event("alice@[127.0.0.1]"))
    assert mailbox.commands == []


def test_an_address_is_no_template() -> None:
    message = offline().message(event("$email.${email}@example.com"))
    assert b"$email.${email}@example.com" in message


def offline(sender: str = SENDER) -> SmtpNotifier:
    return SmtpNotifier(SmtpServer("localhost", 1), sender=sender)


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
@example("a\x85b@example.com")
@example("a\u2028b@example.com")
@example("a\udcffb@example.com")
def test_no_address_that_is_one_can_add_to_a_mail(email: str) -> None:
    try:
        mailbox = EmailAddress(email).mailbox
    except ValidationFailed:
        return
    raw = offline().message(event(email))
    head, _, _ = raw.partition(b"\r\n\r\n")

    lines = head.decode().split("\r\n")
    assert "\r" not in "".join(lines)
    assert "\n" not in "".join(lines)
    names = [line.partition(":")[0] for line in lines if not line.startswith((" ", "\t"))]
    assert sorted(names) == sorted(
        ["From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "MIME-Version", "Content-Type"]
    )
    assert all(len(line) <= 998 for line in raw.split(b"\r\n"))
    to = lines[1].removeprefix("To: ")
    assert EmailAddress(to).mailbox == mailbox
    # What goes into the envelope is what stands in the head.
    assert EmailAddress(quote_address(to)[1:-1]).mailbox == mailbox
    message = BytesParser(EmailMessage, policy=SMTPUTF8).parsebytes(raw)
    assert isinstance(message, EmailMessage)
    assert (email in content(message, "plain")) == _is_plain(email)
    # Python's own reader decodes what must not be decoded (RFC 2047, section 5), and fails at what it finds then.
    if "=?" not in email:
        header = message["To"]
        assert isinstance(header, AddressHeader)
        assert len(header.addresses) == 1


def test_an_address_that_looks_like_an_encoded_word_is_left_as_it_is() -> None:
    message = offline().message(event("=?utf-8?q?x?=@example.com"))
    assert b"\r\nTo: =?utf-8?q?x?=@example.com\r\n" in message


AWAY = float(os.environ.get("TEST_MAIL_AWAY", "0"))
"""How much longer than one attempt the mail server is away, in seconds: minutes are for a run by hand."""


async def test_a_mail_arrives_although_the_mail_server_was_down_at_registration(tmp_path: Path) -> None:
    async with smtp_server() as away:
        port = away.port
    settings = {
        "USERSVC_SMTP_URL": f"smtp://localhost:{port}",
        "USERSVC_MAIL_FROM": "service@example.com",
        "USERSVC_LOG_LEVEL": "info",
    }

    person = {"email": "alice@example.com", "password": "correct horse battery", "age": 30}

    with ExitStack() as stack:
        service = await asyncio.to_thread(stack.enter_context, running(tmp_path, settings, SHORT_RETRY))
        async with service.async_client() as client:
            registered = await client.post("/register", json=person)
        assert registered.status_code == 201
        await asyncio.to_thread(service.wait_for_output, "attempt 1 to welcome user .* failed")
        await asyncio.sleep(AWAY)
        # The waits double, so that the next one is at most about as long as all those before.
        async with smtp_server(port=port) as mailbox, asyncio.timeout(DEADLINE + 1.5 * AWAY):
            await mailbox.arrived.wait()
        assert await asyncio.to_thread(service.stop) == 0

    [envelope], [message] = mailbox.envelopes, mailbox.messages
    assert envelope.rcpt_tos == ["alice@example.com"]
    assert registered.json()["data"]["id"] in message["Message-ID"]
    assert "alice" not in service.output
