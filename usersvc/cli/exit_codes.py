"""Exit codes, and the exceptions that lead to them."""

DONE, FAILED, REFUSED, SOME_REJECTED = 0, 1, 2, 3
"""Success; failure; invalid command line or setting; import with rejected lines. A command that a signal stops exits
with 128 plus the number of the signal, as in shells."""


class Failure(Exception):
    """A command failed; the message is one line."""


class Stopped(Exception):
    """A signal stopped a command; the message is one line."""

    def __init__(self, signal_number: int, text: str = "stopped") -> None:
        super().__init__(text)
        self.signal_number = signal_number
