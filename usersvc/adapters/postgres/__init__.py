"""Users and outbox in PostgreSQL."""

from usersvc.adapters.postgres.archive import PostgresArchive
from usersvc.adapters.postgres.outbox import PostgresOutbox
from usersvc.adapters.postgres.users import PostgresUsers

__all__ = ("PostgresArchive", "PostgresOutbox", "PostgresUsers")
