"""How a command ends: the codes that scripts rely on, and the failures that lead to them."""

DONE, FAILED, REFUSED, SOME_REJECTED = 0, 1, 2, 3
"""Exit codes: the work is done; it could not be done; the command line or a setting is wrong; an import is done, but
for some lines. 128 and the number of a signal, as shells count: it was stopped by that, and says how far it came."""


class Failure(Exception):
    """A command could not do its work; the text says why, in one line."""


class Stopped(Exception):
    """A signal ended a command before its work was done; the text says how far it came."""

    def __init__(self, signal_number: int, text: str = "stopped") -> None:
        super().__init__(text)
        self.signal_number = signal_number
