"""Users and outbox in an SQLite file."""

from usersvc.adapters.sqlite.outbox import SqliteOutbox
from usersvc.adapters.sqlite.users import SqliteArchive, SqliteUsers

__all__ = ("SqliteArchive", "SqliteOutbox", "SqliteUsers")
