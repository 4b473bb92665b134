"""Users and outbox in memory."""

from usersvc.adapters.memory.users import InMemoryOutbox, InMemoryUsers

__all__ = ("InMemoryOutbox", "InMemoryUsers")
