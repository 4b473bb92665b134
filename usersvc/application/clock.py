"""The current time, and how times are written."""

from datetime import UTC, datetime


def utc_now() -> datetime:
    """The current time, in UTC."""
    return datetime.now(UTC)


def timestamp(at: datetime) -> str:
    """A UTC time as RFC 3339 with microseconds and a ``Z``; of fixed width, so texts sort like times."""
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")
