"""Users and outbox in PostgreSQL.

``PostgresUsers`` is imported when it is asked for: its driver is an extra, which ``url`` does not need.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from usersvc.adapters.postgres.users import PostgresUsers as PostgresUsers


def __getattr__(name: str) -> Any:
    if name == "PostgresUsers":
        from usersvc.adapters.postgres.users import PostgresUsers  # noqa: PLC0415  # see above

        return PostgresUsers
    raise AttributeError(name)
