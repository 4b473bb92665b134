"""The same small application for aiohttp and for Starlette."""

import sys
from collections.abc import AsyncIterator

from aiohttp import web
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from usersvc.asgi import AiohttpASGI

ITEM = {"id": 1, "name": "alice", "tags": ["a", "b"]}
CHUNK = b"x" * 2**16
CHUNKS = 2**30 // len(CHUNK)  # 1 GiB


async def get_item(request: web.Request) -> web.Response:
    return web.json_response(ITEM)


async def post_item(request: web.Request) -> web.Response:
    return web.Response(body=await request.read(), content_type="application/json")


async def upload(request: web.Request) -> web.Response:
    total = 0
    async for chunk in request.content.iter_any():
        total += len(chunk)
    return web.Response(text=str(total))


async def download(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    for _ in range(CHUNKS):
        await response.write(CHUNK)
    return response


def aiohttp_application() -> web.Application:
    app = web.Application()
    app.router.add_get("/", get_item)
    app.router.add_post("/", post_item)
    app.router.add_post("/upload", upload)
    app.router.add_get("/download", download)
    return app


def shim() -> AiohttpASGI:
    return AiohttpASGI(aiohttp_application())


async def starlette_get(request: Request) -> Response:
    return JSONResponse(ITEM)


async def starlette_post(request: Request) -> Response:
    return Response(await request.body(), media_type="application/json")


async def starlette_upload(request: Request) -> Response:
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
    return Response(str(total))


async def starlette_download(request: Request) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(CHUNKS):
            yield CHUNK

    return StreamingResponse(chunks())


def starlette() -> Starlette:
    return Starlette(
        routes=[
            Route("/", starlette_get),
            Route("/", starlette_post, methods=["POST"]),
            Route("/upload", starlette_upload, methods=["POST"]),
            Route("/download", starlette_download),
        ]
    )


if __name__ == "__main__":
    import uvloop

    uvloop.install()
    web.run_app(aiohttp_application(), host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None)
