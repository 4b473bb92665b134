"""Kills the service again and again while people register, and counts what became of them.

    python -m tests.soak.crash --kills 200

SIGKILL ends a process between any two instructions, as a crash or the kernel's memory killer does. What the kernel
was given by then reaches the disk. A power cut takes that away too; it is what ``synchronous = FULL`` is for, and is
not seen here.
"""

import argparse
import http.client
import json
import random
import re
import shutil
import sqlite3
import tempfile
import threading
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from tests.e2e.launch import SHORT_LEASE
from tests.e2e.server import DEADLINE, Service, running

CONNECTIONS = 4
AGAIN = 200
"""How many registrations are asked for once more in the end."""
_ADDRESS = re.compile(r"Uvicorn running on (http://\S+)")
_MAIL = re.compile(r"sent a welcome mail to \S+ for user ([0-9a-f-]{36}) \[")


@dataclass
class People:
    """Who has tried to register, and what they were answered."""

    tried: set[str] = field(default_factory=set)
    acknowledged: dict[str, str] = field(default_factory=dict)
    """Ids by address."""
    refused: Counter[int] = field(default_factory=Counter)
    """Other answers, by status."""

    def register(self, address: tuple[str, int]) -> None:
        """Register one after the other on one connection until it breaks."""
        connection = http.client.HTTPConnection(*address, timeout=DEADLINE)
        with closing(connection):
            while True:
                name = uuid4().hex
                # Of many domains: the limit on mails to one of them would make the mails wait.
                email = f"{name}@{name[:1]}.example.com"
                self.tried.add(email)
                try:
                    answer, document = _ask(connection, email)
                except (OSError, http.client.HTTPException, ValueError):
                    # ValueError: the answer was cut off.
                    return
                if answer.status == http.client.CREATED:
                    self.acknowledged[email] = document["data"]["id"]
                else:
                    self.refused[answer.status] += 1


def _ask(connection: http.client.HTTPConnection, email: str) -> tuple[http.client.HTTPResponse, dict[str, Any]]:
    """Register; the address is also the idempotency key, so a repeat has no effect."""
    person = {"email": email, "password": "correct horse battery staple", "age": 30}
    headers = {"Content-Type": "application/json", "Idempotency-Key": email}
    connection.request("POST", "/register", json.dumps(person), headers)
    answer = connection.getresponse()
    return answer, json.load(answer)


@dataclass(frozen=True)
class Stored:
    """What is in the file at one moment."""

    users: Counter[str]
    """Ids by address; how often each is there."""
    ids: Counter[str]
    waiting: set[str]
    """Ids in the outbox."""
    keyed: Counter[str]
    """Ids that idempotency keys name."""
    integrity: list[str]

    @classmethod
    def read(cls, path: Path) -> "Stored":
        with closing(sqlite3.connect(path)) as database:
            users = database.execute("SELECT email, id FROM users").fetchall()
            return cls(
                users=Counter(email for email, _ in users),
                ids=Counter(user_id for _, user_id in users),
                waiting={user_id for (user_id,) in database.execute("SELECT user_id FROM outbox")},
                keyed=Counter(user_id for (user_id,) in database.execute("SELECT user_id FROM idempotency_keys")),
                integrity=[line for (line,) in database.execute("PRAGMA integrity_check")],
            )


@dataclass(frozen=True)
class Counts:
    kills: int
    killed_while_starting: int
    acknowledged: int
    stored_unacknowledged: int
    refused: dict[int, int]
    notified: int
    notified_twice: int
    seconds: float

    def __str__(self) -> str:
        return (
            f"{self.kills} kills ({self.killed_while_starting} while starting) in {self.seconds:.0f} s: "
            f"{self.acknowledged} users acknowledged, all stored once; "
            f"{self.stored_unacknowledged} stored whose answer was lost; {self.refused or 'none'} refused; "
            f"{self.notified} notified, {self.notified_twice} of them more than once"
        )


def run(folder: Path, kills: int, seed: int | None = None) -> Counts:
    """Kill the service so often, and see that nothing is lost.

    Args:
        folder: an empty one, for the file.
        kills: how often.
        seed: of the moments; None for others each time.

    Raises:
        AssertionError: something is lost, half there, or damaged.
    """
    chance = random.Random(seed)
    began = time.monotonic()
    people = People()
    mails: Counter[str] = Counter()
    killed_while_starting = 0
    for _ in range(kills):
        service = Service(folder, {}, SHORT_LEASE)
        crowd: list[threading.Thread] = []
        try:
            # The moment is the point here, so this is the one thing that is waited for by the clock.
            if chance.random() < 0.2:
                time.sleep(chance.uniform(0, 0.8))
                killed_while_starting += 1
            else:
                service.url = service.wait_for_output(_ADDRESS)[0]
                crowd = _crowd(people, service)
                time.sleep(chance.uniform(0, 0.5))
        finally:
            service.kill()
        for thread in crowd:
            thread.join()
        mails.update(_MAIL.findall(service.output))
        if (folder / "usersvc.db").exists():
            _look(_copy(folder), people, mails)
    with running(folder, command=SHORT_LEASE) as service:
        _wait_until_delivered(folder)
        # Whoever had no answer asks again, and so does who had one.
        connection = http.client.HTTPConnection(*service.address, timeout=DEADLINE)
        with closing(connection):
            for email in sorted(people.tried)[:AGAIN]:
                answer, document = _ask(connection, email)
                assert answer.status == http.client.CREATED, document
                known = people.acknowledged.setdefault(email, document["data"]["id"])
                assert document["data"]["id"] == known, "another user under the same key"
        _wait_until_delivered(folder)
        service.stop()
    mails.update(_MAIL.findall(service.output))
    assert [path.name for path in folder.iterdir()] == ["usersvc.db"]
    stored = _look(folder / "usersvc.db", people, mails)
    assert not stored.waiting
    assert not set(stored.ids) - set(mails), "a user got no mail"
    return Counts(
        kills=kills,
        killed_while_starting=killed_while_starting,
        acknowledged=len(people.acknowledged),
        stored_unacknowledged=len(stored.users) - len(people.acknowledged),
        refused=dict(people.refused),
        notified=len(mails),
        notified_twice=sum(count > 1 for count in mails.values()),
        seconds=time.monotonic() - began,
    )


def _crowd(people: People, service: Service) -> list[threading.Thread]:
    crowd = [threading.Thread(target=people.register, args=[service.address]) for _ in range(CONNECTIONS)]
    for thread in crowd:
        thread.start()
    return crowd


def _copy(folder: Path) -> Path:
    """A copy of the file as the kill left it: opening the file itself would repair it before the service has to."""
    copy = folder.with_name(f"{folder.name}-copy")
    shutil.rmtree(copy, ignore_errors=True)
    # The third file, -shm, is what the first one to open the others makes of them.
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*-shm"))
    return copy / "usersvc.db"


def _look(path: Path, people: People, mails: Counter[str]) -> Stored:
    with closing(sqlite3.connect(path)) as database:
        if database.execute("PRAGMA user_version").fetchone() == (0,):
            # Killed while it created the file, before any registration was acknowledged.
            assert not people.acknowledged
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            return Stored(Counter(), Counter(), set(), Counter(), ["ok"])
    stored = Stored.read(path)
    assert stored.integrity == ["ok"]
    assert not set(people.acknowledged) - set(stored.users), "an acknowledged user is lost"
    assert not set(people.acknowledged.values()) - set(stored.ids), "an acknowledged user has another id"
    assert not set(stored.users) - people.tried, "a user is stored who never registered"
    assert max((*stored.users.values(), *stored.ids.values()), default=1) == 1, "a user is stored twice"
    assert not set(stored.ids) - stored.waiting - set(mails), "a user has no mail, sent or pending"
    assert not set(mails) - set(stored.ids), "a mail was sent to a user who is not stored"
    assert stored.keyed == stored.ids, "a key without its user, or a user without the key"
    return stored


def _wait_until_delivered(folder: Path) -> None:
    deadline = time.monotonic() + DEADLINE
    with closing(sqlite3.connect(folder / "usersvc.db")) as database:
        # No event comes out of another process when its outbox is empty.
        while waiting := database.execute("SELECT count(*) FROM outbox").fetchone()[0]:
            assert time.monotonic() < deadline, f"{waiting} are still pending"
            time.sleep(0.05)


def main() -> None:
    parser = argparse.ArgumentParser(description="Kill the service again and again while people register.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, help="of the moments; they still meet the service at different work")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        inner = Path(folder, "service")
        inner.mkdir()
        print(run(inner, chosen.kills, chosen.seed))


if __name__ == "__main__":
    main()
