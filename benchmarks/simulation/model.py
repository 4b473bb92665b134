"""The service as processes and resources: what a registration and a page take, on one host and on many.

What is modelled: cores that threads share, hashing last; the one thread in each process that Python's code runs in; the
hashing threads; the one place in which storage adds users; the outbox that follows. What is not: the network, memory,
disks that get slower as they fill, and anything that fails.
"""

import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.simulation.engine import Pass, Process, Resource, Simulation, Take, use
from usersvc.application.mail_delivery import CONCURRENCY

SLICE = 0.004
"""How long a thread has a core before another one that waits gets it, in seconds."""
HASHING = 1
"""Less urgent than everything else."""
POLLS = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.025, 0.025, 0.025, 0.05, 0.05, 0.1)
"""After which waits SQLite looks again whether another process has released the file, in seconds."""


@dataclass(frozen=True, slots=True)
class Costs:
    """What things take, in seconds, as ``measure`` has found it."""

    hash: Mapping[int, float]
    """By cost: of a core."""
    register_loop: float
    """Of a process's main thread, for a registration and its notification."""
    page_loop: float
    """Of a process's main thread, for a page."""
    page_store: float
    """Of another thread, for the same page."""
    client_page: float
    """Of a core, in the program that asks for pages."""
    add_cpu: float
    add_disk: float
    """To store a user, alone in the file: of a core, and waiting for the disk."""
    outbox_cpu: float
    outbox_disk: float
    """The same to answer for a notification, or to take some."""
    commit: float
    """To add a user to PostgreSQL while others wait for their turn: all of it."""


@dataclass
class Host:
    """One machine with some processes of the service, on one SQLite file."""

    simulation: Simulation
    costs: Costs
    cores: int
    processes: int
    cost: int
    done: int = 0
    loops: list[Resource] = field(init=False)

    def __post_init__(self) -> None:
        """Set the resources up."""
        new = self.simulation
        self.core = Resource(new, self.cores)
        self.loops = [Resource(new, 1) for _ in range(self.processes)]
        self.hashers = [Resource(new, self.cores) for _ in range(self.processes)]
        self.writers = [Resource(new, 1) for _ in range(self.processes)]
        self.file = Resource(new, 1)
        self.places = [Resource(new, CONCURRENCY) for _ in range(self.processes)]
        self.outbox = [0] * self.processes
        self.telling = [False] * self.processes

    def loop(self, process: int, seconds: float) -> Process:
        """Python's code, in the main thread of a process."""
        yield Take(self.loops[process])
        yield from use(self.core, seconds)
        self.loops[process].give()

    def hash(self, process: int) -> Process:
        """A hash, which others may interrupt."""
        yield Take(self.hashers[process])
        left = self.costs.hash[self.cost]
        while left > 0:
            yield from use(self.core, min(SLICE, left), HASHING)
            left -= SLICE
        self.hashers[process].give()

    def write(self, process: int, cpu: float, disk: float) -> Process:
        """A transaction: one at a time in a process, and one in the file, for which processes poll."""
        yield Take(self.writers[process])
        polls = 0
        while not self.file.free:
            yield Pass(POLLS[min(polls, len(POLLS) - 1)])
            polls += 1
        yield Take(self.file)
        yield from use(self.core, cpu)
        yield Pass(disk)
        self.file.give()
        self.writers[process].give()

    def registrant(self, process: int) -> Process:
        """Somebody who registers one person after the other."""
        costs = self.costs
        while True:
            yield from self.loop(process, costs.register_loop)
            yield from self.hash(process)
            yield from self.write(process, costs.add_cpu, costs.add_disk)
            self.done += 1
            self.outbox[process] += 1
            if not self.telling[process]:
                self.telling[process] = True
                self.simulation.start(self.dispatcher(process))

    def dispatcher(self, process: int) -> Process:
        """Takes what is in the outbox, as much as there are places for."""
        places = self.places[process]
        while self.outbox[process]:
            yield Take(places)
            places.give()
            yield from self.write(process, self.costs.outbox_cpu, self.costs.outbox_disk)
            for _ in range(min(places.free, self.outbox[process])):
                self.outbox[process] -= 1
                self.simulation.start(self.delivery(process))
        self.telling[process] = False

    def delivery(self, process: int) -> Process:
        """Tells somebody, in no time, and answers for it."""
        yield Take(self.places[process])
        yield from self.write(process, self.costs.outbox_cpu, self.costs.outbox_disk)
        self.places[process].give()

    def reader(self, process: int) -> Process:
        """Somebody who asks for one page after the other; his program needs a core, too."""
        costs = self.costs
        while True:
            yield from use(self.core, costs.client_page)
            yield from self.loop(process, costs.page_loop / 2)
            yield from use(self.core, costs.page_store)
            yield from self.loop(process, costs.page_loop / 2)
            self.done += 1


def saturated(
    costs: Costs, *, what: str, processes: int, cost: int, cores: int, connections: int = 16, seconds: float = 30.0
) -> float:
    """How many registrations or pages a second one host gives to those who ask again at once."""
    simulation = Simulation()
    host = Host(simulation, costs, cores, processes, cost)
    ask: Callable[[int], Process] = host.registrant if what == "registrations" else host.reader
    for connection in range(connections):
        simulation.start(ask(connection % processes))
    # What a first moment is like is not what the rest is.
    simulation.run(seconds / 10)
    before = host.done
    simulation.run(seconds)
    return (host.done - before) / (seconds * 0.9)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How registrations fared that came at their own pace."""

    p50: float
    p99: float
    """How long they took, in seconds."""
    refused: float
    """The share that found no room."""
    storing: float
    """The share of its time that the place where users are added was busy, of the busiest shard."""
    unstored: int
    """How many waited there at the end."""


def arriving(
    costs: Costs, *, rate: float, instances: int, cost: int, shards: int, seconds: float, queue: int = 64
) -> Outcome:
    """Let registrations come at random at instances of one core each, that store them one after the other.

    Args:
        costs: what things take.
        rate: registrations a second.
        instances: how many there are; they are asked in turn.
        cost: of bcrypt.
        shards: how many databases there are, each of which stores one at a time.
        seconds: for how long.
        queue: how many may wait for the one thread of an instance.
    """
    simulation = Simulation()
    chance = random.Random(8)
    hashers = [Resource(simulation, 1) for _ in range(instances)]
    stores = [Resource(simulation, 1) for _ in range(shards)]
    took: list[float] = []
    came = refused = 0

    def registration(instance: int) -> Process:
        nonlocal refused
        began = simulation.now
        hasher = hashers[instance]
        if hasher.waiting > queue:
            refused += 1
            return
        yield from use(hasher, costs.hash[cost] + costs.register_loop)
        yield from use(chance.choice(stores), costs.commit)
        took.append(simulation.now - began)

    def arrivals() -> Process:
        nonlocal came
        while True:
            yield Pass(chance.expovariate(rate))
            simulation.start(registration(came % instances))
            came += 1

    simulation.start(arrivals())
    simulation.run(seconds)
    percentiles = statistics.quantiles(took, n=100)
    return Outcome(
        p50=percentiles[49],
        p99=percentiles[98],
        refused=refused / came,
        storing=max(store.busy for store in stores) / seconds,
        unstored=sum(store.waiting for store in stores),
    )
