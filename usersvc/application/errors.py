"""Errors that the ports raise."""


class StorageUnavailable(Exception):
    """The storage failed: locked for too long, full, unreachable. The message is for the log."""


class Undeliverable(Exception):
    """The mail cannot be delivered and retrying is useless; the message has the reason but no address."""


class QueueFull(Exception):
    """The hashing queue is full; ``retry_after`` is the estimated time until it has capacity, in whole seconds."""

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"the queue is full; retry after {retry_after} s")
        self.retry_after = retry_after
