"""Errors of the domain, and how several violations are reported at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Violation:
    """One violated rule: the field, a stable code, and a message for people.

    The message never contains the offending value, so it may be shown and logged.
    """

    field: str
    code: str
    message: str


class ValidationFailed(Exception):
    """The data of a user violate rules; ``violations`` has all of them, not only the first."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__(", ".join(f"{violation.field}: {violation.code}" for violation in violations))
        self.violations = tuple(violations)


class EmailAlreadyRegistered(Exception):
    """The mailbox belongs to a user already, perhaps in another spelling."""


def collect(violations: list[Violation], make: Callable[[], T]) -> T | None:
    """Return the result of ``make``; if it raises ``ValidationFailed``, extend ``violations`` and return None."""
    try:
        return make()
    except ValidationFailed as error:
        violations += error.violations
        return None
