"""Tells another program, over HTTP, instead of sending mail."""

import base64
import hmac
import json
from datetime import timedelta
from types import TracebackType
from typing import Self

import aiohttp

from usersvc.application.clock import timestamp, utc_now
from usersvc.application.errors import Undeliverable
from usersvc.domain.events import UserRegistered

TIMEOUT = timedelta(seconds=20)
"""For the whole conversation; less than the dispatcher gives an attempt."""

ABOUT_THE_MESSAGE = frozenset({400, 410, 413, 422})
"""Statuses that a retry of the same message would get again; all others may be fixed by the receiver."""


class WebhookNotifier:
    """A ``Notifier`` that posts a signed message for each event; an asynchronous context manager.

    Headers and signature are those of the Standard Webhooks specification. ``webhook-id`` is the same over retries, so
    that the receiver can recognize a repetition.
    """

    def __init__(self, url: str, *, secret: bytes) -> None:
        """Make a notifier.

        Args:
            url: where messages are posted.
            secret: the key of the signatures, shared with the receiver.
        """
        self._url = url
        self._secret = secret
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Make room for connections; none is opened yet."""
        self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=TIMEOUT.total_seconds()))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close what is open."""
        if self._session is not None:
            await self._session.close()

    async def welcome(self, event: UserRegistered) -> None:
        """See ``Notifier.welcome``.

        Raises:
            Undeliverable: the receiver rejects this message permanently.
            aiohttp.ClientError: there is no response.
            ConnectionError: there is one that does not take the message.
        """
        if self._session is None:
            raise ConnectionError("the notifier is closed")
        body = json.dumps(
            {
                "type": "user.registered",
                "timestamp": timestamp(event.occurred_at),
                "data": {"id": str(event.user_id), "email": event.email},
            }
        ).encode()
        headers = {"Content-Type": "application/json", **self._signed(f"welcome-{event.user_id}", body)}
        # Following a redirect would send the message to another receiver.
        async with self._session.post(self._url, data=body, headers=headers, allow_redirects=False) as response:
            if response.status in ABOUT_THE_MESSAGE:
                raise Undeliverable(f"the hook rejects the message ({response.status})")
            # Not by aiohttp's own error, which would name the URL, and that may hold a secret.
            if not response.ok or response.status >= 300:  # noqa: PLR2004  # a redirection is not a success
                raise ConnectionError(f"the hook responded {response.status}")

    def _signed(self, message_id: str, body: bytes) -> dict[str, str]:
        sent_at = str(int(utc_now().timestamp()))
        signature = hmac.digest(self._secret, f"{message_id}.{sent_at}.".encode() + body, "sha256")
        return {
            "webhook-id": message_id,
            "webhook-timestamp": sent_at,
            "webhook-signature": f"v1,{base64.b64encode(signature).decode()}",
        }
