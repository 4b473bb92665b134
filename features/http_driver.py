"""The service over HTTP: a uvicorn process and a storage that each scenario empties."""

import asyncio
import re
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from features.driver import KEY_REUSED, TAKEN, Application, MailServer, Outcome, Page, Refused, Registered, Unsent
from features.mail_server import HOST, SmtpServer
from features.storage import MEMORY_SERVE, MemoryStorage, OutboxRow, Storage
from tests.e2e.server import SERVE, Service, run_to_end, running
from usersvc.adapters.bcrypt.hasher import MIN_COST, BcryptPasswordHasher
from usersvc.application.clock import utc_now
from usersvc.application.read_models import UserView
from usersvc.domain.password import Password, PasswordHash

CALL_TIMEOUT = 10.0
"""Of one request, in seconds."""

DELIVERY_TIMEOUT = 5.0
"""Until a due mail has been tried, in seconds; less than a mail without a reply could delay it."""

RETRY_TIMEOUT = 20.0
"""Until a mail has been tried twice more, in seconds."""

MARK = "the-end-so-far-"
"""The prefix of the ids of requests that are sent only to find their lines in the log."""

WELCOME = re.compile(r"sent a welcome mail to (.+) for user (\S+) \[")


@contextmanager
def running_service(folder: Path, storage: Storage, mail_server: SmtpServer | None = None) -> Iterator[Service]:
    """The service as it is run.

    Args:
        folder: where it is run.
        storage: its own.
        mail_server: without one, the service logs a line for each mail.
    """
    settings = {
        **storage.settings,
        "USERSVC_BCRYPT_COST": str(MIN_COST),
        # All users register from one client address.
        "USERSVC_REGISTER_RATE": "",
        # The most that is ever logged.
        "USERSVC_LOG_LEVEL": "debug",
    }
    if mail_server is not None:
        settings["USERSVC_SMTP_URL"] = f"smtp://{HOST}:{mail_server.port}"
        settings["USERSVC_MAIL_FROM"] = "welcome@usersvc.example"
    with running(folder, settings, MEMORY_SERVE if isinstance(storage, MemoryStorage) else SERVE) as service:
        storage.connect(service.url)
        threading.Thread(target=_outlive_no_run, args=[service], daemon=True).start()
        yield service


def _outlive_no_run(service: Service) -> None:
    """Kill the service when a run ends without its hooks, as on a broken pipe.

    Otherwise this process would wait for the thread that reads the output of the service.
    """
    threading.main_thread().join()
    with suppress(ProcessLookupError):
        service.kill()


class HttpDriver:
    """A ``Driver`` of a running service, whose storage it empties."""

    def __init__(self, service: Service, storage: Storage, mail_server: SmtpServer | None = None) -> None:
        self._service = service
        self._storage = storage
        self._mail_server = mail_server
        self._begin = 0
        self._shown: list[str] = []
        self._client = httpx.Client(
            base_url=service.url,
            timeout=CALL_TIMEOUT,
            trust_env=False,
            # Reading the certificates of the system takes longer than a scenario.
            verify=False,
            event_hooks={"response": [self._keep]},
        )
        self._delete_all()
        if mail_server is not None:
            mail_server.reset()
        self._begin = len(self._lines_so_far())

    def close(self) -> None:
        self._client.close()
        if self._mail_server is not None:
            # Ends the deliveries that are running.
            self._mail_server.go_down()

    @property
    def mail_server(self) -> MailServer:
        return self._real_mail_server

    @property
    def _real_mail_server(self) -> SmtpServer:
        assert self._mail_server is not None, "only scenarios with the tag @mail_server have one"
        return self._mail_server

    def now(self) -> datetime:
        return utc_now()

    def register(self, application: Application) -> Outcome:
        body = vars(application).copy()
        key = body.pop("key")
        response = self._client.post("/register", json=body, headers={} if key is None else {"Idempotency-Key": key})
        outcomes: dict[int, Callable[[Any], Outcome]] = {
            httpx.codes.CREATED: lambda body: Registered(body["data"]),
            httpx.codes.CONFLICT: lambda _: TAKEN,
            httpx.codes.UNPROCESSABLE_ENTITY: lambda body: (
                KEY_REUSED
                if body["code"] == "idempotency-key-reused"
                else Refused(frozenset((error["field"], error["code"]) for error in body["errors"]))
            ),
        }
        assert response.status_code in outcomes, f"{response.status_code}: {response.text}"
        return outcomes[response.status_code](response.json())

    def register_at_once(self, applications: Sequence[Application]) -> list[Outcome]:
        with ThreadPoolExecutor(len(applications)) as threads:
            return [*threads.map(self.register, applications)]

    def page(self, *, size: int | None = None, newest_first: bool = False, email: str | None = None) -> Page:
        asked = {"limit": size, "order": "desc" if newest_first else None, "email": email}
        return self._page("/users", {name: value for name, value in asked.items() if value is not None})

    def _page(self, link: str, asked: dict[str, Any] | None = None) -> Page:
        body = self._client.get(link, params=asked).raise_for_status().json()
        following = body["links"]["next"]
        return Page(body["data"], next_page=None if following is None else lambda: self._page(following))

    def look_up(self, user_id: str) -> UserView | None:
        response = self._client.get(f"/users/{user_id}")
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        user: UserView = response.raise_for_status().json()["data"]
        return user

    def welcomes(self) -> list[tuple[str, str]]:
        self._wait_for_due()
        if self._mail_server is not None:
            return self._mail_server.welcomes()
        return WELCOME.findall(self._output())

    def texts(self) -> list[str]:
        """The text of the mails that were sent."""
        self._wait_for_due()
        return self._real_mail_server.texts()

    def wait_for_retries(self) -> None:
        self._wait_until_none(lambda mail: mail.due_at is not None)

    def unsent(self) -> list[Unsent]:
        self._wait_for_due()
        return [self._unsent(line) for line in self._command("outbox", "list").splitlines()]

    def _unsent(self, line: str) -> Unsent:
        entry_id, due, _, user_id, reason = line.split("\t")
        user = self.look_up(user_id)
        assert user is not None, line
        return Unsent(int(entry_id), user["email"], is_dead_lettered=due == "dead-lettered", reason=reason)

    def send_again(self, entry_id: int) -> None:
        self._command("outbox", "retry", str(entry_id))

    def _wait_for_due(self) -> None:
        """Wait until each due mail has been tried, except those that get no reply."""
        unanswered = [] if self._mail_server is None else [*self._mail_server.without_reply]
        now = utc_now()

        def is_due(mail: OutboxRow) -> bool:
            if mail.is_leased:
                return mail.email not in unanswered
            return mail.due_at is not None and mail.due_at <= now

        self._wait_until_none(is_due, within=DELIVERY_TIMEOUT)

    def _wait_until_none(self, matches: Callable[[OutboxRow], bool], within: float = RETRY_TIMEOUT) -> None:
        deadline = time.monotonic() + within
        while found := [mail for mail in self._storage.outbox() if matches(mail)]:
            assert time.monotonic() < deadline, f"{len(found)} mails are not sent in time:\n{self._service.output}"
            time.sleep(0.01)

    def _command(self, *arguments: str) -> str:
        done = run_to_end(self._service.folder, self._storage.settings, (sys.executable, "-m", "usersvc", *arguments))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def recognises(self, user_id: str, password: str) -> bool:
        password_hash = self._storage.hashes()[user_id]

        async def verify() -> bool:
            async with BcryptPasswordHasher(cost=MIN_COST, workers=1) as hasher:
                return await hasher.verify(Password.choose(password), PasswordHash(password_hash))

        return asyncio.run(verify())

    def stored(self) -> bytes:
        return self._storage.everything()

    def stored_hashes(self) -> list[str]:
        return [*self._storage.hashes().values()]

    def shown(self) -> str:
        mails = [] if self._mail_server is None else self._mail_server.texts()
        return "\n".join([*self._shown, *mails, self._output()])

    def _output(self) -> str:
        """What the service has written since the beginning of the scenario."""
        return "\n".join(self._lines_so_far()[self._begin :])

    def _lines_so_far(self) -> list[str]:
        """All lines that the service has written so far."""
        mark = f"{MARK}{uuid4()}"
        self._client.get("/livez", headers={"X-Request-ID": mark}).raise_for_status()
        self._service.wait_for_output(f"request_id={mark}")
        return [line for line in self._service.output.split("\n") if MARK not in line]

    def _keep(self, response: httpx.Response) -> None:
        if MARK in response.headers["X-Request-ID"]:
            return
        self._shown += [str(response.headers), response.read().decode()]

    def _delete_all(self) -> None:
        # Deliveries that are running soon end; without the other mails, the last scenario cannot affect this one.
        self._storage.delete_mails()
        self._wait_until_none(lambda mail: mail.is_leased)
        self._storage.delete_all()
