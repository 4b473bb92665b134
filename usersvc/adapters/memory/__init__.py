"""Users and outbox in memory."""

from usersvc.adapters.memory.outbox import InMemoryOutbox
from usersvc.adapters.memory.users import InMemoryArchive, InMemoryUsers

__all__ = ("InMemoryArchive", "InMemoryOutbox", "InMemoryUsers")
