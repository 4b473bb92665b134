"""Discrete events: processes that take, hold and give back what there is only so much of; their time is only reckoned.

A process is a generator. It yields ``Pass`` for time that goes by, and ``Take`` for a place of a ``Resource``; it gives
the place back by calling ``Resource.give``.
"""

from collections.abc import Generator
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count


class Resource:
    """So many places. Who finds none waits; of those who wait, the more urgent go first, else who came first."""

    def __init__(self, simulation: "Simulation", places: int) -> None:
        self.free = places
        self._simulation = simulation
        self._waiting: list[tuple[int, int, Process]] = []
        self._numbers = count()
        self._taken, self._since, self._busy = 0, 0.0, 0.0

    def give(self) -> None:
        """Give back a place: whoever is next has it at once."""
        if self._waiting:
            self._simulation.resume(heappop(self._waiting)[2])
        else:
            self._count(-1)
            self.free += 1

    def take(self, process: "Process", urgency: int) -> bool:
        """Take a place, or wait for one; tells whether it was there."""
        if self.free:
            self.free -= 1
            self._count(1)
            return True
        heappush(self._waiting, (urgency, next(self._numbers), process))
        return False

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    @property
    def busy(self) -> float:
        """How long places were taken until now, all together."""
        return self._busy + self._taken * (self._simulation.now - self._since)

    def _count(self, change: int) -> None:
        self._busy, self._since = self.busy, self._simulation.now
        self._taken += change


@dataclass(frozen=True, slots=True)
class Take:
    """Wait for a place of a resource."""

    resource: Resource
    urgency: int = 0
    """The smaller, the sooner."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Let time go by."""

    seconds: float


Process = Generator[Take | Pass, None, None]


class Simulation:
    """The time, and what is to happen."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Process]] = []
        self._numbers = count()

    def start(self, process: Process, *, after: float = 0.0) -> None:
        """Let a process begin."""
        heappush(self._events, (self.now + after, next(self._numbers), process))

    resume = start

    def run(self, until: float) -> None:
        """Let happen what does before a moment, in seconds."""
        while self._events and self._events[0][0] <= until:
            self.now, _, process = heappop(self._events)
            for step in process:
                if isinstance(step, Pass):
                    self.start(process, after=step.seconds)
                    break
                if not step.resource.take(process, step.urgency):
                    break
        self.now = until


def use(resource: Resource, seconds: float, urgency: int = 0) -> Process:
    """Take a place, hold it for some time, and give it back."""
    yield Take(resource, urgency)
    yield Pass(seconds)
    resource.give()
