"""A model of the service: registrations and pages, on one host and on many.

It contains cores, which hashing uses with the lowest priority; the main thread of each process; hashing threads; the
serialized insertion of users; and the outbox. It does not contain networks, memory, disks that become slower as they
fill, or failures.
"""

import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from benchmarks.simulation.engine import Pass, Process, Resource, Simulation, Take, use
from usersvc.application.mail_delivery import CONCURRENCY

SLICE = 0.004
"""The time slice of a thread, in seconds."""
HASHING = 1
"""The lowest priority."""
POLLS = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.025, 0.025, 0.025, 0.05, 0.05, 0.1)
"""The delays after which SQLite checks again whether another process has released the file, in seconds."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Measured times, in seconds."""

    hash: Mapping[int, float]
    """CPU time, by bcrypt cost."""
    register_loop: float
    """CPU time of the main thread for a registration and its mail."""
    page_loop: float
    """CPU time of the main thread for a page."""
    page_store: float
    """CPU time of the storage thread for a page."""
    client_page: float
    """CPU time of the client for a page."""
    add_cpu: float
    add_disk: float
    """Adding a user without contention: CPU time, and waiting for the disk."""
    outbox_cpu: float
    outbox_disk: float
    """The same for completing or leasing deliveries."""
    commit: float
    """The whole time of adding a user to PostgreSQL, while others wait."""


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
        """Set up the resources."""
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
        """Run Python code in the main thread of a process."""
        yield Take(self.loops[process])
        yield from use(self.core, seconds)
        self.loops[process].give()

    def hash(self, process: int) -> Process:
        """Compute a hash, which other threads can interrupt."""
        yield Take(self.hashers[process])
        left = self.costs.hash[self.cost]
        while left > 0:
            yield from use(self.core, min(SLICE, left), HASHING)
            left -= SLICE
        self.hashers[process].give()

    def write(self, process: int, cpu: float, disk: float) -> Process:
        """Run a transaction: one at a time in a process, and one in the file, for which processes poll."""
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
        """A client that registers one user after the other."""
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
        """Leases due entries of the outbox while slots are free."""
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
        """Delivers a mail, which takes no time, and completes its entry."""
        yield Take(self.places[process])
        yield from self.write(process, self.costs.outbox_cpu, self.costs.outbox_disk)
        self.places[process].give()

    def reader(self, process: int) -> Process:
        """A client that requests one page after the other, and needs a core too."""
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
    """Registrations or pages a second of one host, with clients that send the next request at once."""
    simulation = Simulation()
    host = Host(simulation, costs, cores, processes, cost)
    ask: Callable[[int], Process] = host.registrant if what == "registrations" else host.reader
    for connection in range(connections):
        simulation.start(ask(connection % processes))
    # The beginning is not representative.
    simulation.run(seconds / 10)
    before = host.done
    simulation.run(seconds)
    return (host.done - before) / (seconds * 0.9)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The results of registrations at a given rate."""

    p50: float
    p99: float
    """Percentiles of the latency, in seconds."""
    refused: float
    """The share that was rejected because the queue was full."""
    storing: float
    """The share of time for which the busiest shard was adding users."""
    unstored: int
    """The number that waited there at the end."""


def arriving(
    costs: Costs, *, rate: float, instances: int, cost: int, shards: int, seconds: float, queue: int = 64
) -> Outcome:
    """Simulate random arrivals at instances of one core each, which store users one after the other.

    Args:
        costs: measured times.
        rate: registrations a second.
        instances: their number; requests are distributed in turn.
        cost: of bcrypt.
        shards: the number of databases, each of which adds one user at a time.
        seconds: the simulated time.
        queue: the length of the hashing queue of an instance.
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
