"""Kill the service repeatedly while users register, and check that nothing acknowledged is lost.

SIGKILL ends a process between any two instructions; what it has written reaches the disk. A power cut, which
``synchronous = FULL`` is for, is not simulated.
"""

import http.client
import json
import os
import random
import re
import shutil
import sqlite3
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
KILLS = int(os.environ.get("KILLS", "20"))
REPEATS = 200
"""The number of registrations that are repeated at the end."""
_ADDRESS = re.compile(r"Uvicorn running on (http://\S+)")
_MAIL = re.compile(r"sent a welcome mail to \S+ for user ([0-9a-f-]{36}) \[")


@dataclass
class People:
    """The users who tried to register, and the responses."""

    tried: set[str] = field(default_factory=set)
    acknowledged: dict[str, str] = field(default_factory=dict)
    """Ids by address."""

    def register(self, address: tuple[str, int]) -> None:
        """Register users on one connection until it breaks."""
        connection = http.client.HTTPConnection(*address, timeout=DEADLINE)
        with closing(connection):
            while True:
                name = uuid4().hex
                # Of many domains: the limit on mails to one of them would make the mails wait.
                email = f"{name}@{name[:1]}.example.com"
                self.tried.add(email)
                try:
                    response, document = _register(connection, email)
                except (OSError, http.client.HTTPException, ValueError):
                    # ValueError: the response was cut off.
                    return
                if response.status == http.client.CREATED:
                    self.acknowledged[email] = document["data"]["id"]


def _register(connection: http.client.HTTPConnection, email: str) -> tuple[http.client.HTTPResponse, dict[str, Any]]:
    """Register; the address is also the idempotency key, so a repeat has no effect."""
    person = {"email": email, "password": "correct horse battery staple", "age": 30}
    headers = {"Content-Type": "application/json", "Idempotency-Key": email}
    connection.request("POST", "/register", json.dumps(person), headers)
    response = connection.getresponse()
    return response, json.load(response)


def _start_registering(people: People, service: Service) -> list[threading.Thread]:
    threads = [threading.Thread(target=people.register, args=[service.address]) for _ in range(CONNECTIONS)]
    for thread in threads:
        thread.start()
    return threads


def _copy(folder: Path) -> Path:
    """A copy of the file as the kill left it: opening the original would recover it before the service does."""
    copy = folder.with_name(f"{folder.name}-copy")
    shutil.rmtree(copy, ignore_errors=True)
    # The first process that opens the others creates the -shm.
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*-shm"))
    return copy / "usersvc.db"


def _check(path: Path, people: People, mails: Counter[str]) -> None:
    with closing(sqlite3.connect(path)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        if database.execute("PRAGMA user_version").fetchone() == (0,):
            # Killed while it created the file, before any registration.
            assert not people.acknowledged
            return
        stored = database.execute("SELECT email, id FROM users").fetchall()
        pending = {user_id for (user_id,) in database.execute("SELECT user_id FROM outbox")}
        keyed = sorted(user_id for (user_id,) in database.execute("SELECT user_id FROM idempotency_keys"))
    emails, ids = {email for email, _ in stored}, {user_id for _, user_id in stored}
    assert len(emails) == len(ids) == len(stored), "a user is stored twice"
    assert people.acknowledged.items() <= dict(stored).items(), "an acknowledged user is lost or has another id"
    assert emails <= people.tried, "a user is stored who never registered"
    assert ids <= pending | set(mails), "a user has no mail, sent or pending"
    assert set(mails) <= ids, "a mail was sent to a user who is not stored"
    assert keyed == sorted(ids), "a key without its user, or a user without the key"


def _wait_until_delivered(folder: Path) -> None:
    deadline = time.monotonic() + DEADLINE
    with closing(sqlite3.connect(folder / "usersvc.db")) as database:
        while pending := database.execute("SELECT count(*) FROM outbox").fetchone()[0]:
            assert time.monotonic() < deadline, f"{pending} are still pending"
            time.sleep(0.05)


def test_nothing_acknowledged_is_lost_when_the_service_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "service"
    folder.mkdir()
    people = People()
    mails: Counter[str] = Counter()
    for _ in range(KILLS):
        service = Service(folder, {}, SHORT_LEASE)
        threads: list[threading.Thread] = []
        try:
            # At a random time, sometimes during the start.
            if random.random() < 0.2:
                time.sleep(random.uniform(0, 0.8))
            else:
                service.url = service.wait_for_output(_ADDRESS)[0]
                threads = _start_registering(people, service)
                time.sleep(random.uniform(0, 0.5))
        finally:
            service.kill()
        for thread in threads:
            thread.join()
        mails.update(_MAIL.findall(service.output))
        if (folder / "usersvc.db").exists():
            _check(_copy(folder), people, mails)
    with running(folder, command=SHORT_LEASE) as service:
        _wait_until_delivered(folder)
        # All repeat their registrations, with and without a response.
        with closing(http.client.HTTPConnection(*service.address, timeout=DEADLINE)) as connection:
            for email in sorted(people.tried)[:REPEATS]:
                response, document = _register(connection, email)
                assert response.status == http.client.CREATED, document
                known = people.acknowledged.setdefault(email, document["data"]["id"])
                assert document["data"]["id"] == known, "another user under the same key"
        _wait_until_delivered(folder)
        service.stop()
    mails.update(_MAIL.findall(service.output))
    assert [path.name for path in folder.iterdir()] == ["usersvc.db"]
    _check(folder / "usersvc.db", people, mails)
    assert people.acknowledged
