"""Registers thousands of users at two instances behind nginx, while one is killed and PostgreSQL crashes.

    python -m tests.soak.many_hosts --registrations 5000 --contested 500

Each instance has two processes. A client without a response, or with one that asks it to retry, repeats the request
under the same idempotency key.
"""

import argparse
import re
import tempfile
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import httpx

from tests.e2e.api import pages_from, person
from tests.e2e.server import DEADLINE, SERVE, Service, free_port, running
from tests.postgres import query
from tests.postgres_server import Server, own_server
from tests.soak.proxy import Proxy, proxy
from usersvc.application.mail_delivery import LEASE

CLIENTS = 24
SPELLINGS = (str.lower, str.upper, str.title)
"""The spellings of a contested mailbox; each is sent by one of as many concurrent clients."""
RETRY_STATUSES = {502, 503, 504}
PAUSE = 0.5
"""Seconds between two attempts without ``Retry-After``."""
RETRY_TIMEOUT = 60.0
"""Seconds after which a client gives up."""
MAIL = re.compile(r"sent a welcome mail to \S+ for user ([0-9a-f-]{36})")
_PASSED_ON = re.compile(r'"instance":"[^",]+, ')


@dataclass(frozen=True)
class Registration:
    mailbox: str
    email: str
    """The mailbox as this client spells it."""
    start: threading.Barrier
    """Makes the clients with the same mailbox start together."""


def registrations(mailboxes: int, contested: int) -> Iterator[Registration]:
    """The registrations for all mailboxes: the contested ones are spread evenly among the others."""
    for number in range(mailboxes):
        # Many domains: the mail limit of one domain would delay the mails.
        mailbox = f"person{number}@{number % 16}.example.com"
        is_contested = (number + 1) * contested // mailboxes > number * contested // mailboxes
        spellings = SPELLINGS if is_contested else SPELLINGS[:1]
        start = threading.Barrier(len(spellings))
        for spelling in spellings:
            yield Registration(mailbox, spelling(mailbox), start)


class Clients:
    """Send registrations concurrently, each until it has a final response."""

    def __init__(self, front: Proxy | Service, pending: Iterator[Registration]) -> None:
        self.acknowledged: defaultdict[str, list[tuple[str, str]]] = defaultdict(list)
        """Id and email of each 201 response, by mailbox."""
        self.refused: Counter[str] = Counter()
        """The number of 409 responses, by mailbox."""
        self.statuses: Counter[int] = Counter()
        self.longest_outage = 0.0
        """Seconds from the start of a failed attempt to the final response."""
        self._front = front
        self._changed = threading.Condition()
        self._pending = pending
        self._threads = ThreadPoolExecutor(CLIENTS)
        self._running = [self._threads.submit(self._work) for _ in range(CLIENTS)]

    def wait_until_acknowledged(self, count: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.acknowledged) >= count, 10 * RETRY_TIMEOUT), self.statuses

    def wait_until_asked_to_retry(self) -> None:
        with self._changed:
            before = self.asked_to_retry
            assert self._changed.wait_for(lambda: self.asked_to_retry > before, RETRY_TIMEOUT), self.statuses

    def stop(self) -> None:
        """Start no more registrations, and wait for the last responses."""
        with self._changed:
            self._pending = iter(())
        self.wait_for_all()

    def wait_for_all(self) -> None:
        for each in self._running:
            each.result()
        self._threads.shutdown()

    @property
    def asked_to_retry(self) -> int:
        return sum(self.statuses[status] for status in RETRY_STATUSES)

    def _work(self) -> None:
        with self._front.client() as client:
            while True:
                with self._changed:
                    # In order, so that clients with the same mailbox never wait for ever.
                    registration = next(self._pending, None)
                if registration is None:
                    return
                registration.start.wait(2 * RETRY_TIMEOUT)
                self._record(registration, self._register(client, registration))

    def _register(self, client: httpx.Client, registration: Registration) -> httpx.Response:
        headers = {"Idempotency-Key": uuid4().hex}
        began, failed_at = time.monotonic(), None
        while True:
            tried_at, pause = time.monotonic(), PAUSE
            # A killed instance or nginx may break the connection.
            with suppress(httpx.TransportError):
                response = client.post("/register", json=person(email=registration.email), headers=headers)
                with self._changed:
                    self.statuses[response.status_code] += 1
                    self._changed.notify_all()
                    if response.status_code not in RETRY_STATUSES:
                        if failed_at is not None:
                            self.longest_outage = max(self.longest_outage, time.monotonic() - failed_at)
                        return response
                pause = float(response.headers["Retry-After"])
            failed_at = failed_at or tried_at
            assert tried_at - began < RETRY_TIMEOUT, f"no final response in {RETRY_TIMEOUT:.0f} s: {self.statuses}"
            time.sleep(pause)

    def _record(self, registration: Registration, response: httpx.Response) -> None:
        document = response.json()
        with self._changed:
            if response.status_code == httpx.codes.CREATED:
                user = document["data"]
                assert user["email"] == registration.email
                self.acknowledged[registration.mailbox].append((user["id"], user["email"]))
            else:
                assert (response.status_code, document["code"]) == (409, "email-taken"), response.text
                self.refused[registration.mailbox] += 1
            self._changed.notify_all()


def run(folder: Path, *, mailboxes: int, contested: int, command: Sequence[str] = SERVE) -> Mapping[str, float]:
    """Register users, and check that none is lost, duplicated or mixed up; return the metrics of the run by name.

    Several clients register each of the ``contested`` mailboxes.
    """
    with ExitStack() as stack:
        database = stack.enter_context(own_server())
        settings = {
            "USERSVC_WORKERS": "2",
            "USERSVC_DATABASE_URL": database.url,
            "USERSVC_TRUSTED_PROXIES": "127.0.0.1",
            # The temporary files of a killed process are removed with the folder.
            "TMPDIR": str(folder),
        }
        ports = [free_port(), free_port()]

        def instance(port: int) -> Service:
            return stack.enter_context(running(folder, {**settings, "USERSVC_PORT": str(port)}, command))

        instances = [instance(port) for port in ports]
        front = stack.enter_context(proxy(folder, [each.address for each in instances]))
        began = time.monotonic()
        clients = Clients(front, registrations(mailboxes, contested))
        clients.wait_until_acknowledged(mailboxes // 2)
        instances[0].kill()
        clients.wait_until_acknowledged(mailboxes * 3 // 4)
        database.stop("immediate")
        stopped = time.monotonic()
        clients.wait_until_asked_to_retry()
        database.start()
        outage = time.monotonic() - stopped
        # A service manager would restart the killed instance.
        instances.append(instance(ports[0]))
        clients.wait_for_all()
        seconds = time.monotonic() - began
        # The leases of the killed process have to expire first.
        database.wait_until_outbox_is_empty(LEASE.total_seconds() + DEADLINE)
        with front.client() as client:
            listed = [user["id"] for page in pages_from(client, "/users?limit=200&order=asc") for user in page]
        for each in instances:
            each.stop()
            assert "Traceback" not in each.output, each.output
        passed_on = len(_PASSED_ON.findall(front.log))
        assert passed_on, "nginx sent every request to a running instance"
        _check_responses(clients, mailboxes, contested)
        _check_users(clients, database, listed)
        mails = Counter(user_id for each in instances for user_id in MAIL.findall(each.output))
        assert set(mails) == set(listed), "a user has no mail, or a mail has no user"
    return {
        "mailboxes": mailboxes,
        "contested": contested,
        "refused": clients.refused.total(),
        "asked to retry": clients.asked_to_retry,
        "passed on by nginx": passed_on,
        "duplicate mails": mails.total() - mailboxes,
        "seconds": seconds,
        "seconds without PostgreSQL": outage,
        "longest outage for a client in seconds": clients.longest_outage,
    }


def _check_responses(clients: Clients, mailboxes: int, contested: int) -> None:
    assert set(clients.statuses) <= {201, 409, *RETRY_STATUSES}, clients.statuses
    assert len(clients.acknowledged) == mailboxes, "a free mailbox was refused"
    assert all(len(owners) == 1 for owners in clients.acknowledged.values()), "a mailbox was given to two users"
    # All other clients of a contested mailbox were refused.
    assert set(clients.refused.values()) <= {len(SPELLINGS) - 1}
    assert len(clients.refused) == contested


def _check_users(clients: Clients, database: Server, listed: list[str]) -> None:
    acknowledged = {user_id: email for [(user_id, email)] in clients.acknowledged.values()}
    stored = [str(user_id) for user_id in query(database.url, "SELECT id FROM users ORDER BY position")]
    emails = query(database.url, "SELECT email FROM users ORDER BY position")
    # A lost, an unknown, a duplicate or a mixed-up user makes these differ.
    assert len(stored) == len(acknowledged)
    assert dict(zip(stored, emails, strict=True)) == acknowledged
    assert set(query(database.url, "SELECT mailbox FROM users")) == set(clients.acknowledged)
    assert listed == stored, "the pages skip or repeat a user"
    keyed = [str(user_id) for user_id in query(database.url, "SELECT user_id FROM idempotency_keys")]
    assert sorted(keyed) == sorted(stored), "a key without its user, or a user without the key"


def main() -> None:
    parser = argparse.ArgumentParser(description="Register users at two instances, one of which is killed.")
    parser.add_argument("--registrations", type=int, default=5000, help="number of mailboxes")
    parser.add_argument("--contested", type=int, default=500, help="how many of them several clients register")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, value in run(Path(folder), mailboxes=arguments.registrations, contested=arguments.contested).items():
            print(f"{name}: {value:,.4g}")


if __name__ == "__main__":
    main()
