"""What `usersvc.asgi.private_parts` relies on in aiohttp, and what could change without failing another test.

The oldest and the newest aiohttp that pyproject.toml admits pass all of `tests/asgi`; so should any other:

    python -m venv /tmp/old
    /tmp/old/bin/pip install . aiohttp==3.14.0 pytest pytest-asyncio httpx[http2] hypercorn granian
    PYTHONPATH=. /tmp/old/bin/python -m pytest --confcutdir tests/asgi tests/asgi
"""

import asyncio
import inspect
import re
from collections.abc import Callable
from typing import Any

import pytest
from aiohttp import web
from aiohttp.http_parser import DeflateBuffer
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.test_utils import make_mocked_request
from aiohttp.web_request import BaseRequest
from aiohttp.web_urldispatcher import PlainResource, UrlDispatcher


@pytest.mark.parametrize(
    ("function", "part"),
    [
        *((getattr(StreamReader, name), "self._wait(") for name in ("read", "readany", "readchunk", "readuntil")),
        (DeflateBuffer.feed_data, "data_available"),  # Body._feed
        (web.Request._finish, ".close()"),  # close_files
        (web.FileResponse._sendfile, "except NotImplementedError"),  # Transport
        (asyncio.BaseEventLoop.sendfile, "_sendfile_compatible"),  # Transport
    ],
)
def test_parts_of_functions(function: Callable[..., Any], part: str) -> None:
    assert part in inspect.getsource(function)


def used(sources: tuple[Any, ...], *names: str) -> set[str]:
    """The attributes of objects of these names that the sources use."""
    text = "".join(inspect.getsource(source) for source in sources)
    return set(re.findall(rf"(?<!aiohttp\.)\b(?:{'|'.join(names)})\.(\w+)", text))


@pytest.mark.parametrize(
    ("sources", "names", "known"),
    [
        ((StreamReader,), (r"self\._protocol",), {"connected", "pause_reading", "resume_reading"}),  # Receiver
        (
            (BaseRequest,),
            (r"(?:self\._)?protocol",),
            {"ssl_context", "peername", "sockname", "transport", "max_field_size", "max_headers"},
        ),  # Receiver
        (
            (web.Application._handle,),
            ("self", "request", "match_info"),
            {
                "_router", "add_app", "freeze", "_match_info", "headers", "expect_handler", "writer", "handler",
                "_run_middlewares", "_has_legacy_middlewares", "route", "apps",
            },
        ),  # fixed_routes
        (
            (UrlDispatcher.resolve,),
            ("self", "request"),
            {"_resource_index", "_matched_sub_app_resources", "rel_url", "method"},
        ),  # fixed_routes
        (
            (PlainResource.resolve, PlainResource._match),
            ("self", "request"),
            {"_match", "_routes", "_any_route", "_allowed_methods", "rel_url", "method", "_path"},
        ),  # fixed_routes
    ],
)  # fmt: skip
def test_attributes_used(sources: tuple[Any, ...], names: tuple[str, ...], known: set[str]) -> None:
    assert used(sources, *names) == known


async def test_request_has_the_attributes_that_are_set_or_created_lazily() -> None:
    known = {
        "_message", "_protocol", "_payload_writer", "_payload", "_headers", "_method", "_version", "_cache", "_rel_url",
        "_state", "_task", "_client_max_size", "_loop", "_transport_sslcontext",
        "_transport_peername", "_transport_sockname",
    }  # fmt: skip
    assert set(vars(make_mocked_request("GET", "/"))) - {"_match_info", "_client_max_fields"} == known
    assert web.Request._read_bytes is None
    assert web.Request._match_info is None
    request = make_mocked_request("POST", "/", payload=EMPTY_PAYLOAD)
    request._read_bytes = b"kept"
    assert await request.read() == b"kept"


def test_response_has_no_other_attributes() -> None:
    """A new attribute may be something that `whole_response` would have to check."""
    read = {
        "_body", "_headers", "_status", "_compression", "_chunked", "_cookies", "_keep_alive", "_payload_writer",
        "_eof_sent",
    }  # fmt: skip
    ignored = {
        "_cache", "_compressed_body", "_compression_force", "_compression_strategy", "_content_dict", "_content_type",
        "_length_check", "_must_be_empty_body", "_parsed_content_type", "_reason", "_req", "_send_headers_immediately",
        "_state", "_stored_content_type", "_zlib_executor", "_zlib_executor_size", "_body_length", "_seen_str_keys",
        "_abc_impl",
    }  # fmt: skip
    response = web.Response()
    attributes = {name for name in vars(response) if name.startswith("_")}
    for kind in (web.Response, web.StreamResponse):
        attributes |= {
            name
            for name, value in vars(kind).items()
            if re.match("_[^_]", name) and not callable(value) and not isinstance(value, property)
        }
    assert attributes <= read | ignored
    assert all(hasattr(response, name) for name in read)
    response._eof_sent = True
    assert response.prepared
