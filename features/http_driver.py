"""The service over HTTP: a uvicorn process and a storage for many scenarios, which begin by emptying it."""

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

from features.driver import KEY_REUSED, TAKEN, Answer, Application, MailServer, Page, Refused, Registered, Unsent
from features.mail_server import HOST, SmtpServer
from features.storage import MEMORY_SERVE, MemoryStorage, Storage, Waiting
from tests.e2e.server import SERVE, Service, run_to_end, running
from usersvc.adapters.bcrypt.hasher import MIN_COST, BcryptPasswordHasher
from usersvc.application.clock import utc_now
from usersvc.application.read_models import UserView
from usersvc.domain.password import Password, PasswordHash

TIME_LIMIT = 10.0
"""For one answer, in seconds."""

PROMPTLY = 5.0
"""In which a mail is tried that is due, in seconds; less than one that gets no answer might hold it up."""

PATIENCE = 20.0
"""In which a mail is tried twice more, in seconds."""

MARK = "the-end-so-far-"
"""How the ids of those requests begin that are made for their lines in the log."""

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
        # Everybody here registers from one client address.
        "USERSVC_REGISTER_RATE": "",
        # Then the log gives away the most that it ever does.
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
    """Kill the service when a run breaks off without its hooks, as it does when nobody reads its report any more.

    The process could not end: it waits for the thread that reads what the service writes.
    """
    threading.main_thread().join()
    with suppress(ProcessLookupError):
        service.kill()


class HttpDriver:
    """A ``Driver`` of a running service, which begins by emptying it."""

    def __init__(self, service: Service, storage: Storage, mail_server: SmtpServer | None = None) -> None:
        self._service = service
        self._storage = storage
        self._mail_server = mail_server
        self._begin = 0
        self._told: list[str] = []
        self._client = httpx.Client(
            base_url=service.url,
            timeout=TIME_LIMIT,
            trust_env=False,
            # There are no certificates here; reading those of the system takes longer than a scenario does.
            verify=False,
            event_hooks={"response": [self._keep]},
        )
        self._forget_everybody()
        if mail_server is not None:
            mail_server.begin_anew()
        self._begin = len(self._lines_so_far())

    def close(self) -> None:
        self._client.close()
        if self._mail_server is not None:
            # Then no mail stays in hand for long.
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

    def register(self, application: Application) -> Answer:
        body = vars(application).copy()
        key = body.pop("key")
        response = self._client.post("/register", json=body, headers={} if key is None else {"Idempotency-Key": key})
        answers: dict[int, Callable[[Any], Answer]] = {
            httpx.codes.CREATED: lambda body: Registered(body["data"]),
            httpx.codes.CONFLICT: lambda _: TAKEN,
            httpx.codes.UNPROCESSABLE_ENTITY: lambda body: (
                KEY_REUSED
                if body["code"] == "idempotency-key-reused"
                else Refused(frozenset((error["field"], error["code"]) for error in body["errors"]))
            ),
        }
        assert response.status_code in answers, f"{response.status_code}: {response.text}"
        return answers[response.status_code](response.json())

    def register_at_once(self, applications: Sequence[Application]) -> list[Answer]:
        with ThreadPoolExecutor(len(applications)) as threads:
            return [*threads.map(self.register, applications)]

    def page(self, *, size: int | None = None, newest_first: bool = False, email: str | None = None) -> Page:
        asked = {"limit": size, "order": "desc" if newest_first else None, "email": email}
        return self._page("/users", {name: value for name, value in asked.items() if value is not None})

    def _page(self, link: str, asked: dict[str, Any] | None = None) -> Page:
        body = self._client.get(link, params=asked).raise_for_status().json()
        following = body["links"]["next"]
        return Page(body["data"], turn=None if following is None else lambda: self._page(following))

    def look_up(self, user_id: str) -> UserView | None:
        response = self._client.get(f"/users/{user_id}")
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        user: UserView = response.raise_for_status().json()["data"]
        return user

    def welcomes(self) -> list[tuple[str, str]]:
        self._wait_for_those_due()
        if self._mail_server is not None:
            return self._mail_server.welcomes()
        return WELCOME.findall(self._output())

    def words(self) -> list[str]:
        """What people read in the mails that they were sent."""
        self._wait_for_those_due()
        return self._real_mail_server.words()

    def wait_for_retries(self) -> None:
        self._wait_until_none(lambda mail: mail.due_at is not None)

    def unsent(self) -> list[Unsent]:
        self._wait_for_those_due()
        return [self._unsent(line) for line in self._command("outbox", "list").splitlines()]

    def _unsent(self, line: str) -> Unsent:
        entry_id, due, _, user_id, reason = line.split("\t")
        user = self.look_up(user_id)
        assert user is not None, line
        return Unsent(int(entry_id), user["email"], is_set_aside=due == "dead-lettered", reason=reason)

    def send_again(self, entry_id: int) -> None:
        self._command("outbox", "retry", str(entry_id))

    def _wait_for_those_due(self) -> None:
        """Wait until each mail has been tried that is due by now; not for those that will get no answer."""
        unanswered = [] if self._mail_server is None else [*self._mail_server.kept_waiting]
        now = utc_now()

        def is_due(mail: Waiting) -> bool:
            if mail.is_held:
                return mail.email not in unanswered
            return mail.due_at is not None and mail.due_at <= now

        self._wait_until_none(is_due, within=PROMPTLY)

    def _wait_until_none(self, matter: Callable[[Waiting], bool], within: float = PATIENCE) -> None:
        deadline = time.monotonic() + within
        while found := [mail for mail in self._storage.waiting() if matter(mail)]:
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
        mails = [] if self._mail_server is None else self._mail_server.words()
        return "\n".join([*self._told, *mails, self._output()])

    def _output(self) -> str:
        """What the service has written since the beginning of the scenario."""
        return "\n".join(self._lines_so_far()[self._begin :])

    def _lines_so_far(self) -> list[str]:
        """Everything that the service has ever written up to now, none of it still on its way here."""
        mark = f"{MARK}{uuid4()}"
        self._client.get("/livez", headers={"X-Request-ID": mark}).raise_for_status()
        self._service.wait_for_output(f"request_id={mark}")
        return [line for line in self._service.output.split("\n") if MARK not in line]

    def _keep(self, response: httpx.Response) -> None:
        if MARK in response.headers["X-Request-ID"]:
            return
        self._told += [str(response.headers), response.read().decode()]

    def _forget_everybody(self) -> None:
        # With those gone that nobody has in hand, none comes to hand any more, and the others soon go by themselves: so
        # nothing of the last scenario happens in this one.
        self._storage.forget_mails()
        self._wait_until_none(lambda mail: mail.is_held)
        self._storage.forget_everybody()
