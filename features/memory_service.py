"""``usersvc serve`` in memory, with a door for the tests through which it can be looked into and emptied."""

import json
from typing import Any

from features.storage import DOOR
from usersvc import bootstrap, cli
from usersvc.adapters.memory import InMemoryOutbox, InMemoryUsers
from usersvc.asgi import AiohttpASGI

EVERYBODY = 10**6


class OpenOutbox(InMemoryOutbox):
    def forget_mails(self) -> None:
        self._entries = {entry_id: entry for entry_id, entry in self._entries.items() if entry.lease is not None}

    def forget_limits(self) -> None:
        self._reserved.clear()


class OpenUsers(InMemoryUsers):
    """The one store of this process."""

    instance: "OpenUsers"

    def __init__(self) -> None:
        super().__init__()
        self.outbox: OpenOutbox = OpenOutbox()
        OpenUsers.instance = self

    async def look(self) -> bytes:
        document = {
            "waiting": [
                {
                    "email": entry.event.email,
                    "is_held": entry.lease is not None,
                    "due_at": entry.due_at and entry.due_at.isoformat(),
                }
                for entry in await self.outbox.entries()
            ],
            "hashes": {
                str(record.id): record.password_hash for record in await self.archive.users(after=None, limit=EVERYBODY)
            },
            "everything": repr(vars(self)),
        }
        return json.dumps(document).encode()

    async def forget(self, what: str) -> None:
        if what == "mails":
            self.outbox.forget_mails()
        else:
            for record in await self.archive.users(after=None, limit=EVERYBODY):
                await self.remove(record.id)
            self.outbox.forget_limits()


def create_asgi_app() -> Any:
    """As in ``usersvc.bootstrap``, with the door beside it."""
    service: AiohttpASGI = create_without_door()

    async def with_door(scope: Any, receive: Any, send: Any) -> None:
        if scope.get("path") != DOOR:
            return await service(scope, receive, send)
        answer = b""
        if scope["method"] == "DELETE":
            await OpenUsers.instance.forget(scope["query_string"].decode().partition("=")[2])
        else:
            answer = await OpenUsers.instance.look()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": answer})
        return None

    return with_door


create_without_door = bootstrap.create_asgi_app

if __name__ == "__main__":
    vars(bootstrap)["InMemoryUsers"] = OpenUsers
    vars(bootstrap)["create_asgi_app"] = create_asgi_app
    cli.main(["serve"])
