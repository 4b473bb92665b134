"""Notifiers: the log, and SMTP."""

from typing import TYPE_CHECKING, Any

from usersvc.adapters.mail.logging_notifier import LoggingNotifier

if TYPE_CHECKING:
    from usersvc.adapters.mail.smtp_notifier import SmtpNotifier

__all__ = ("LoggingNotifier", "SmtpNotifier")


def __getattr__(name: str) -> Any:
    """Import the SMTP client when it is needed (PEP 562): it is slow to import, and most services start without it."""
    if name != "SmtpNotifier":
        raise AttributeError(name)
    from usersvc.adapters.mail import smtp_notifier  # noqa: PLC0415  # slow to import

    return smtp_notifier.SmtpNotifier
