"""``usersvc serve`` in memory, with a path through which tests inspect and empty the store."""

import json
from typing import Any

from features.storage import INSPECT_PATH
from usersvc import bootstrap, cli
from usersvc.adapters.memory import InMemoryOutbox, InMemoryUsers
from usersvc.asgi import AiohttpASGI

MAX_USERS = 10**6


class OpenOutbox(InMemoryOutbox):
    def delete_mails(self) -> None:
        self._entries = {entry_id: entry for entry_id, entry in self._entries.items() if entry.lease is not None}

    def delete_limits(self) -> None:
        self._reserved.clear()


class OpenUsers(InMemoryUsers):
    """The one store of this process."""

    instance: "OpenUsers"

    def __init__(self) -> None:
        super().__init__()
        self.outbox: OpenOutbox = OpenOutbox()
        OpenUsers.instance = self

    async def inspect(self) -> bytes:
        document = {
            "waiting": [
                {
                    "email": entry.event.email,
                    "is_leased": entry.lease is not None,
                    "due_at": entry.due_at and entry.due_at.isoformat(),
                }
                for entry in await self.outbox.entries()
            ],
            "hashes": {
                str(record.id): record.password_hash for record in await self.archive.users(after=None, limit=MAX_USERS)
            },
            "everything": repr(vars(self)),
        }
        return json.dumps(document).encode()

    async def delete(self, what: str) -> None:
        if what == "mails":
            self.outbox.delete_mails()
        else:
            for record in await self.archive.users(after=None, limit=MAX_USERS):
                await self.remove(record.id)
            self.outbox.delete_limits()


def create_asgi_app() -> Any:
    """As in ``usersvc.bootstrap``, with that path added."""
    service: AiohttpASGI = create_service()

    async def with_inspection(scope: Any, receive: Any, send: Any) -> None:
        if scope.get("path") != INSPECT_PATH:
            return await service(scope, receive, send)
        body = b""
        if scope["method"] == "DELETE":
            await OpenUsers.instance.delete(scope["query_string"].decode().partition("=")[2])
        else:
            body = await OpenUsers.instance.inspect()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})
        return None

    return with_inspection


create_service = bootstrap.create_asgi_app

if __name__ == "__main__":
    vars(bootstrap)["InMemoryUsers"] = OpenUsers
    vars(bootstrap)["create_asgi_app"] = create_asgi_app
    cli.main(["serve"])
