"""The floor: Starlette, aiosqlite and orjson by hand, without a domain and without validation of responses.

BENCH_DATABASE=users.db uvicorn benchmarks.peers.floor:app
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiosqlite
import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route


async def livez(_: Request) -> Response:
    return Response(b'{"data":{"status":"ok"}}', media_type="application/json")


async def list_users(request: Request) -> Response:
    limit = int(request.query_params.get("limit", "50"))
    after = int(request.query_params.get("after", "0"))
    connection: aiosqlite.Connection = request.app.state.connection
    async with connection.execute(
        "SELECT id, email, age, registered_at, position FROM users WHERE position > ? ORDER BY position LIMIT ?",
        (after, limit + 1),
    ) as cursor:
        rows = list(await cursor.fetchall())
    document = {
        "data": [{"id": row[0], "email": row[1], "age": row[2], "registered_at": row[3]} for row in rows[:limit]],
        "links": {"next": f"/users?limit={limit}&after={rows[limit - 1][4]}" if len(rows) > limit else None},
    }
    return Response(orjson.dumps(document), media_type="application/json")


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    async with aiosqlite.connect(os.environ["BENCH_DATABASE"]) as connection:
        app.state.connection = connection
        yield


app = Starlette(routes=[Route("/livez", livez), Route("/users", list_users)], lifespan=lifespan)
