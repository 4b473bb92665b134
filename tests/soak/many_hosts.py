"""Lets a crowd register at two instances behind nginx, while one is killed and PostgreSQL crashes, and counts.

    python -m tests.soak.many_hosts --registrations 5000 --contested 500

Each instance has two processes. Whoever gets no answer, or is told to come again, asks again under the same key, as a
client should. A mail is a line in the log.
"""

import argparse
import re
import subprocess
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from uuid import uuid4

import httpx

from tests.e2e.api import pages_from, person
from tests.e2e.server import DEADLINE, SERVE, Service, free_port
from tests.postgres import query
from tests.postgres_server import Server, own_server
from tests.soak.proxy import Proxy, proxy
from usersvc.application.mail_delivery import LEASE

CLIENTS = 24
SPELLINGS = (str.lower, str.upper, str.title)
"""In how many ways, and so by how many people, a mailbox is contested."""
COME_AGAIN = {502, 503, 504}
PAUSE = 0.5
"""How long a client waits when nobody has told it, in seconds."""
PATIENCE = 60.0
"""How long a client asks again, in seconds."""
_MAIL = re.compile(r"sent a welcome mail to \S+ for user ([0-9a-f-]{36})")
_PASSED_ON = re.compile(r'"instance":"[^",]+, ')


@dataclass(frozen=True)
class Registration:
    """What one person asks for."""

    mailbox: str
    email: str
    """As that person spells it."""
    together: threading.Barrier
    """Those who want the same mailbox, and begin at once."""


def registrations(mailboxes: int, contested: int) -> Iterator[Registration]:
    """All who want one of so many mailboxes: the contested ones are spread evenly among the others."""
    for number in range(mailboxes):
        # Of many domains: the limit on mails to one of them would make the mails wait.
        mailbox = f"person{number}@{number % 16}.example.com"
        is_contested = (number + 1) * contested // mailboxes > number * contested // mailboxes
        spellings = SPELLINGS if is_contested else SPELLINGS[:1]
        together = threading.Barrier(len(spellings))
        for spelling in spellings:
            yield Registration(mailbox, spelling(mailbox), together)


class Crowd:
    """Those who register, all of them at once as far as there are clients, until everybody has an answer."""

    def __init__(self, front: Proxy, waiting: Iterator[Registration]) -> None:
        self.acknowledged: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        """Id and spelling of those who were told that they are registered, by mailbox."""
        self.refused: Counter[str] = Counter()
        """How many were told that it is taken, by mailbox."""
        self.statuses: Counter[int] = Counter()
        """Of all answers."""
        self.broken = 0
        """Connections that gave none."""
        self.replayed = 0
        self.longest_outage = 0.0
        """Seconds, from the beginning of a try that failed to the answer in the end."""
        self._front = front
        self._news = threading.Condition()
        self._waiting: SimpleQueue[Registration] = SimpleQueue()
        for registration in waiting:
            self._waiting.put(registration)
        self._threads = ThreadPoolExecutor(CLIENTS)
        self._running = [self._threads.submit(self._work) for _ in range(CLIENTS)]

    def wait_until_acknowledged(self, count: int) -> None:
        """Wait until so many mailboxes have an owner."""
        with self._news:
            while len(self.acknowledged) < count:
                assert self._news.wait(PATIENCE), self

    def wait_until_told_to_come_again(self) -> None:
        """Wait until somebody was answered that it does not work just now."""
        with self._news:
            before = self.told_to_come_again
            assert self._news.wait_for(lambda: self.told_to_come_again > before, PATIENCE), self

    def wait_for_all(self) -> None:
        """Wait until everybody has an answer."""
        for each in self._running:
            each.result()
        self._threads.shutdown()

    @property
    def told_to_come_again(self) -> int:
        return sum(self.statuses[status] for status in COME_AGAIN)

    def __str__(self) -> str:
        return f"{len(self.acknowledged)} acknowledged; answers: {dict(self.statuses)}; {self.broken} got none"

    def _work(self) -> None:
        with self._front.client() as client:
            while True:
                try:
                    # Those who want the same mailbox stand one behind the other, so they never wait for ever.
                    registration = self._waiting.get_nowait()
                except Empty:
                    return
                registration.together.wait(2 * PATIENCE)
                self._take(registration, self._ask(client, registration))

    def _ask(self, client: httpx.Client, registration: Registration) -> httpx.Response:
        """Ask, and again under the same key, until there is an answer."""
        headers = {"Idempotency-Key": uuid4().hex}
        began = time.monotonic()
        failed_at = None
        while True:
            tried_at, pause = time.monotonic(), PAUSE
            try:
                answer = client.post("/register", json=person(email=registration.email), headers=headers)
            except httpx.TransportError:
                with self._news:
                    self.broken += 1
            else:
                with self._news:
                    self.statuses[answer.status_code] += 1
                    if answer.status_code not in COME_AGAIN:
                        if failed_at is not None:
                            self.longest_outage = max(self.longest_outage, time.monotonic() - failed_at)
                        return answer
                    self._news.notify_all()
                pause = float(answer.headers["Retry-After"])
            failed_at = failed_at or tried_at
            assert tried_at - began < PATIENCE, f"no answer in {PATIENCE:.0f} s: {self}"
            time.sleep(pause)

    def _take(self, registration: Registration, answer: httpx.Response) -> None:
        document = answer.json()
        with self._news:
            if answer.status_code == httpx.codes.CREATED:
                user = document["data"]
                assert user["email"] == registration.email
                self.acknowledged[registration.mailbox].append((user["id"], user["email"]))
                self.replayed += answer.headers.get("Idempotency-Replayed") == "true"
                self._news.notify_all()
            else:
                assert (answer.status_code, document["code"]) == (409, "email-taken"), answer.text
                self.refused[registration.mailbox] += 1


@dataclass(frozen=True)
class Counts:
    mailboxes: int
    contested: int
    refused: int
    come_again: int
    broken: int
    replayed: int
    passed_on: int
    mails: int
    seconds: float
    away: float
    longest_outage: float

    def __str__(self) -> str:
        return (
            f"{self.mailboxes:,} mailboxes, {self.contested:,} of them contested by {len(SPELLINGS)} at once, "
            f"in {self.seconds:.0f} s: {self.mailboxes:,} acknowledged, each stored and listed once and for one of "
            f"those who asked; {self.refused:,} refused; {self.come_again + self.broken:,} retries "
            f"({self.come_again:,} told to come again, {self.broken:,} without an answer), {self.replayed:,} answers "
            f"replayed; {self.passed_on:,} requests passed on by nginx; {self.mails:,} mails, "
            f"{self.mails - self.mailboxes:,} of them duplicates; PostgreSQL away for {self.away:.1f} s, longest "
            f"outage for a client {self.longest_outage:.1f} s"
        )


def run(folder: Path, *, mailboxes: int, contested: int, command: Sequence[str] = SERVE) -> Counts:
    """Let them register, and see that nothing is lost and nothing is there twice.

    Args:
        folder: an empty one.
        mailboxes: how many are registered.
        contested: how many of them several people want.
        command: what an instance is.

    Raises:
        AssertionError: something is lost, there twice, or somebody else's.
    """
    with ExitStack() as stack:
        database = stack.enter_context(own_server())
        settings = {
            "USERSVC_WORKERS": "2",
            "USERSVC_DATABASE_URL": database.url,
            "USERSVC_TRUSTED_PROXIES": "127.0.0.1",
            # What a process that is killed leaves behind goes with the folder.
            "TMPDIR": str(folder),
        }
        ports = [free_port(), free_port()]

        def instance(port: int) -> Service:
            service = Service(folder, {**settings, "USERSVC_PORT": str(port)}, command)
            stack.callback(_end, service)
            return service

        instances = [instance(port) for port in ports]
        for each in instances:
            each.wait_until_it_responds()
        front = stack.enter_context(proxy(folder, [each.address for each in instances]))
        began = time.monotonic()
        crowd = Crowd(front, registrations(mailboxes, contested))
        crowd.wait_until_acknowledged(mailboxes // 2)
        instances[0].kill()
        crowd.wait_until_acknowledged(mailboxes * 3 // 4)
        database.stop("immediate")
        away = time.monotonic()
        crowd.wait_until_told_to_come_again()
        database.start()
        away = time.monotonic() - away
        # As whatever looks after it would start it; the crowd leaves it little of the processor, and may be done first.
        instances.append(instance(ports[0]))
        crowd.wait_for_all()
        seconds = time.monotonic() - began
        instances[-1].wait_until_it_responds()
        _wait_until_told(database)
        with front.client() as client:
            listed = [user["id"] for page in pages_from(client, "/users?limit=200&order=asc") for user in page]
        for each in instances:
            each.stop()
            assert "Traceback" not in each.output, each.output
        passed_on = len(_PASSED_ON.findall(front.log))
        assert passed_on, "nobody has noticed the kill"
        _look_at_answers(crowd, mailboxes, contested)
        _look_at_users(crowd, database, listed)
        mails = Counter(user_id for each in instances for user_id in _MAIL.findall(each.output))
        assert set(mails) == set(listed), "somebody was not told, or somebody was who is not there"
    return Counts(
        mailboxes=mailboxes,
        contested=contested,
        refused=crowd.refused.total(),
        come_again=crowd.told_to_come_again,
        broken=crowd.broken,
        replayed=crowd.replayed,
        passed_on=passed_on,
        mails=mails.total(),
        seconds=seconds,
        away=away,
        longest_outage=crowd.longest_outage,
    )


def _end(service: Service) -> None:
    try:
        service.stop()
    except subprocess.TimeoutExpired:
        service.kill()
        raise


def _wait_until_told(database: Server) -> None:
    # The lease of what a killed process had in hand has to end.
    deadline = time.monotonic() + LEASE.total_seconds() + DEADLINE
    # No event comes out of the database when its outbox is empty.
    while waiting := query(database.url, "SELECT id FROM outbox"):
        assert time.monotonic() < deadline, f"{len(waiting)} still wait to be told"
        time.sleep(0.1)


def _look_at_answers(crowd: Crowd, mailboxes: int, contested: int) -> None:
    assert set(crowd.statuses) <= {201, 409, *COME_AGAIN}, f"other answers: {crowd}"
    assert len(crowd.acknowledged) == mailboxes, "somebody was refused whom nobody has forestalled"
    assert all(len(owners) == 1 for owners in crowd.acknowledged.values()), "a mailbox was given to two people"
    # Everybody else who wanted it was told that it is taken.
    assert set(crowd.refused.values()) <= {len(SPELLINGS) - 1}
    assert len(crowd.refused) == contested


def _look_at_users(crowd: Crowd, database: Server, listed: list[str]) -> None:
    acknowledged = {user_id: email for [(user_id, email)] in crowd.acknowledged.values()}
    stored = [str(user_id) for user_id in query(database.url, "SELECT id FROM users ORDER BY position")]
    spellings = query(database.url, "SELECT email FROM users ORDER BY position")
    assert not set(acknowledged) - set(stored), "an acknowledged user is lost"
    assert not set(stored) - set(acknowledged), "somebody is there whom nobody knows of"
    assert len(stored) == len(acknowledged), "somebody is there twice"
    assert dict(zip(stored, spellings, strict=True)) == acknowledged, "somebody has another one's place"
    assert set(query(database.url, "SELECT mailbox FROM users")) == set(crowd.acknowledged)
    assert listed == stored, "pages leave somebody out, or show somebody twice"
    keyed = [str(user_id) for user_id in query(database.url, "SELECT user_id FROM idempotency_keys")]
    assert sorted(keyed) == sorted(stored), "a key without its user, or a user without the key"


def main() -> None:
    parser = argparse.ArgumentParser(description="Register thousands at two instances, of which one is killed.")
    parser.add_argument("--registrations", type=int, default=5000, help="mailboxes that are registered")
    parser.add_argument("--contested", type=int, default=500, help="how many of them several people want at once")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        print(run(Path(folder), mailboxes=chosen.registrations, contested=chosen.contested))


if __name__ == "__main__":
    main()
