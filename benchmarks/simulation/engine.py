"""A discrete-event simulation: processes that share limited resources, in simulated time.

A process is a generator. It yields ``Pass`` to let time pass, and ``Take`` to take a unit of a ``Resource``, which it
returns by calling ``Resource.give``.
"""

from collections.abc import Generator
from dataclasses import dataclass
from heapq import heappop, heappush
from itertools import count


class Resource:
    """A number of units. Processes wait for a free one; more urgent ones first, then in order of arrival."""

    def __init__(self, simulation: "Simulation", places: int) -> None:
        self.free = places
        self._simulation = simulation
        self._waiting: list[tuple[int, int, Process]] = []
        self._numbers = count()
        self._taken, self._since, self._busy = 0, 0.0, 0.0

    def give(self) -> None:
        """Return a unit; the next waiting process gets it at once."""
        if self._waiting:
            self._simulation.resume(heappop(self._waiting)[2])
        else:
            self._count(-1)
            self.free += 1

    def take(self, process: "Process", urgency: int) -> bool:
        """Take a unit, or wait for one; return whether one was free."""
        if self.free:
            self.free -= 1
            self._count(1)
            return True
        heappush(self._waiting, (urgency, next(self._numbers), process))
        return False

    @property
    def waiting(self) -> int:
        """The number of waiting processes."""
        return len(self._waiting)

    @property
    def busy(self) -> float:
        """The total time for which units have been taken."""
        return self._busy + self._taken * (self._simulation.now - self._since)

    def _count(self, change: int) -> None:
        self._busy, self._since = self.busy, self._simulation.now
        self._taken += change


@dataclass(frozen=True, slots=True)
class Take:
    """Wait for a unit of a resource."""

    resource: Resource
    urgency: int = 0
    """Smaller values go first."""


@dataclass(frozen=True, slots=True)
class Pass:
    """Let time pass."""

    seconds: float


Process = Generator[Take | Pass, None, None]


class Simulation:
    """The current time and the scheduled events."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Process]] = []
        self._numbers = count()

    def start(self, process: Process, *, after: float = 0.0) -> None:
        """Start a process."""
        heappush(self._events, (self.now + after, next(self._numbers), process))

    resume = start

    def run(self, until: float) -> None:
        """Run all events up to a time, in seconds."""
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
    """Take a unit, hold it for some time, and return it."""
    yield Take(resource, urgency)
    yield Pass(seconds)
    resource.give()
