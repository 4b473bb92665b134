"""Runs the commands of the console script in this process, on a database of its own."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, TypeVar

import pytest

from usersvc import cli
from usersvc.adapters.sqlite import SqliteUsers
from usersvc.application.idempotency import IdempotencyKey
from usersvc.application.outbox_entries import OutboxEntry
from usersvc.application.read_models import UserRecord
from usersvc.domain.password import PasswordHash
from usersvc.domain.user import User

T = TypeVar("T")

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)
HASH = "$2y$10$DwS6fdNzX/WPAc/7zf2M/.qmrVXRRwhq.5Exus5uxZCvdNbH7pfDS"
ID = "0b9f6f1c-58ab-4f5c-9d5f-0f6b9a3a3a3a"
HEAD = "email,age,password_hash\n"


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


class Commands:
    def __init__(self, capsys: pytest.CaptureFixture[str], folder: Path) -> None:
        self._capsys = capsys
        self.folder = folder
        self.database = folder / "users.db"

    def __call__(self, *arguments: str | Path) -> Outcome:
        code = 0
        try:
            cli.main([str(argument) for argument in arguments])
        except SystemExit as ended:
            assert isinstance(ended.code, int)
            code = ended.code
        out, err = self._capsys.readouterr()
        assert "Traceback" not in out + err
        assert "--with-password-hashes" in arguments or HASH not in out + err
        return Outcome(code, out, err)

    def fails(self, *arguments: str | Path) -> str:
        """The message, of one line, of a command that fails."""
        code, out, err = self(*arguments)
        assert (code, out, err[:9], err.count("\n"), err[-1]) == (1, "", "usersvc: ", 1, "\n")
        return err.removeprefix("usersvc: ").rstrip("\n")

    def on_store(self, work: Callable[[SqliteUsers], Awaitable[T]]) -> T:
        async def run() -> T:
            async with SqliteUsers(self.database) as users:
                return await work(users)

        return asyncio.run(run())

    def register(self, *emails: str) -> list[User]:
        """Register users, each with a pending mail and an idempotency key."""
        users = [
            User.register(email=email, password="correct horse battery", age=30).complete(PasswordHash(HASH), at=NOW)
            for email in emails
        ]

        async def work(store: SqliteUsers) -> None:
            for user in users:
                await store.add(user, key=key_of(user.email.typed))

        self.on_store(work)
        return users

    def outbox(self) -> list[OutboxEntry]:
        return self.on_store(lambda users: users.outbox.entries())

    def stored(self) -> list[UserRecord]:
        return self.on_store(lambda users: users.archive.users(after=None, limit=100000))

    def write(self, name: str, content: str) -> Path:
        path = self.folder / name
        path.write_text(content, newline="")
        return path


def key_of(email: str) -> IdempotencyKey:
    return IdempotencyKey.named(ascii(email))


def people(count: int) -> str:
    return HEAD + "".join(f"person{n}@example.com,30,{HASH}\n" for n in range(count))
