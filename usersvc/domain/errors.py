"""What can go wrong in the language of the domain."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken rule: of which field, under which stable code, and in words for a person.

    The message never contains the offending value, so it may be shown and logged.
    """

    field: str
    code: str
    message: str


class DomainError(Exception):
    """Base of the errors that the domain and its ports raise on purpose."""


class ValidationFailed(DomainError):
    """A user with these data may not exist; ``violations`` holds every broken rule, not only the first."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__(", ".join(f"{violation.field}: {violation.code}" for violation in violations))
        self.violations = tuple(violations)


class EmailAlreadyRegistered(DomainError):
    """The mailbox belongs to somebody already, perhaps in another spelling."""
