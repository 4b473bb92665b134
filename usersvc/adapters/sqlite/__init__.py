"""Users and outbox in an SQLite file."""

from usersvc.adapters.sqlite.users import SqliteUsers

__all__ = ("SqliteUsers",)
