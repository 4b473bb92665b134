"""Errors of the domain, and how several violations are reported at once."""

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Violation:
    """One violated rule: the field, a stable code, and a message that never contains the offending value."""

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


@contextmanager
def collect(violations: list[Violation]) -> Generator[None, None, None]:
    """Extend ``violations`` by those of a ``ValidationFailed`` that is raised inside."""
    try:
        yield
    except ValidationFailed as error:
        violations += error.violations
