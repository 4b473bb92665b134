"""Users and outbox in PostgreSQL."""

from usersvc.adapters.postgres.users import PostgresUsers

__all__ = ("PostgresUsers",)
