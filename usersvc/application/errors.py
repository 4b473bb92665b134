"""What can go wrong outside of the domain."""

from usersvc.domain.errors import DomainError


class StorageUnavailable(DomainError):
    """The store cannot answer just now: locked for too long, full, unreachable. The message is for the log."""


class Undeliverable(DomainError):
    """This message will never reach this person; the text says why, and names no address."""


class QueueFull(DomainError):
    """Too many passwords wait to be hashed; ``retry_after`` says in how many whole seconds there should be room."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"no room before {retry_after} s have passed")
        self.retry_after = retry_after
