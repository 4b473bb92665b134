"""Mail for a service without a mail server: a line in the log."""

import logging

from usersvc.domain.events import UserRegistered

log = logging.getLogger(__name__)
# The line stands for the mail, so it is written whatever level the rest of the log has.
log.setLevel(logging.INFO)


class LoggingNotifier:
    """A ``Notifier`` that writes one line for each mail, with the address in full."""

    async def welcome(self, event: UserRegistered) -> None:
        log.info("sent a welcome mail to %s for user %s", event.email, event.user_id)
