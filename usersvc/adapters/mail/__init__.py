"""Notifiers: the log, and SMTP."""

from usersvc.adapters.mail.logging_notifier import LoggingNotifier

__all__ = ("LoggingNotifier",)
