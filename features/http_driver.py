"""The service over HTTP: one uvicorn process and one SQLite file for all scenarios."""

import asyncio
import re
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

import httpx

from features.driver import TAKEN, Answer, Application, Page, Refused, Registered
from tests.e2e.server import Service, running
from usersvc.adapters.bcrypt_hasher import MIN_COST, BcryptPasswordHasher
from usersvc.application.ports import UserView
from usersvc.domain.user import Password, PasswordHash

TIME_LIMIT = 10.0
"""For one answer, in seconds."""

DATABASE = "users.db"

WELCOME = re.compile(r"sent a welcome mail to (.+) for user (\S+)$", re.MULTILINE)


@contextmanager
def running_service() -> Iterator[Service]:
    """The service as it is run, with a database of its own."""
    with TemporaryDirectory() as folder:
        settings = {
            "USERSVC_DATABASE_URL": f"sqlite:///{DATABASE}",
            "USERSVC_BCRYPT_COST": str(MIN_COST),
            # Everybody here registers from one client address.
            "USERSVC_REGISTER_RATE": "",
            # Then the log gives away the most that it ever does.
            "USERSVC_LOG_LEVEL": "debug",
        }
        with running(Path(folder), settings) as service:
            yield service


class HttpDriver:
    """A ``Driver`` of a running service, which begins by emptying it."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._database = service.folder / DATABASE
        self._forget_everybody()
        self._begin = len(service.output)
        self._told: list[str] = []
        self._client = httpx.Client(
            base_url=service.url,
            timeout=TIME_LIMIT,
            trust_env=False,
            # There are no certificates here; reading those of the system takes longer than a scenario does.
            verify=False,
            event_hooks={"response": [self._keep]},
        )

    def close(self) -> None:
        self._client.close()

    def register(self, application: Application) -> Answer:
        response = self._client.post("/register", json=vars(application))
        answers: dict[int, Callable[[Any], Answer]] = {
            httpx.codes.CREATED: lambda body: Registered(body["data"]),
            httpx.codes.CONFLICT: lambda _: TAKEN,
            httpx.codes.UNPROCESSABLE_ENTITY: lambda body: Refused(
                frozenset((error["field"], error["code"]) for error in body["errors"])
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
        # Welcomes go out in the order in which people register: once this one is out, so are all that were due.
        last = f"{uuid4()}@example.com"
        self.register(Application(last, "a password for the last one", 30))
        self._service.wait_for_output(f"sent a welcome mail to {last} for user ")
        return [welcome for welcome in WELCOME.findall(self._output()) if welcome[0] != last]

    def recognises(self, user_id: str, password: str) -> bool:
        [password_hash] = self._query("SELECT password_hash FROM users WHERE id = ?", user_id)

        async def verify() -> bool:
            async with BcryptPasswordHasher(cost=MIN_COST, workers=1) as hasher:
                return await hasher.verify(Password.choose(password), PasswordHash(password_hash))

        return asyncio.run(verify())

    def stored(self) -> bytes:
        return b"".join(path.read_bytes() for path in self._service.folder.iterdir())

    def stored_hashes(self) -> list[str]:
        return self._query("SELECT password_hash FROM users")

    def shown(self) -> str:
        return "\n".join([*self._told, self._output()])

    def _output(self) -> str:
        return self._service.output[self._begin :]

    def _keep(self, response: httpx.Response) -> None:
        self._told += [str(response.headers), response.read().decode()]

    def _forget_everybody(self) -> None:
        tables = self._query("SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'")
        for table in tables:
            self._query(f'DELETE FROM "{table}"')

    def _query(self, statement: str, *values: str) -> list[str]:
        """The first column of what a statement gives."""
        with closing(sqlite3.connect(self._database, isolation_level=None)) as connection:
            return [row[0] for row in connection.execute(statement, values)]
