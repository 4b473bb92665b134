"""Notifiers: the log, and SMTP."""

from usersvc.adapters.mail.logging_notifier import LoggingNotifier
from usersvc.adapters.mail.smtp_notifier import SmtpNotifier

__all__ = ("LoggingNotifier", "SmtpNotifier")
