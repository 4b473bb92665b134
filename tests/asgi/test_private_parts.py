"""What `usersvc.asgi` relies on beyond aiohttp's documented API: a failure here says what an upgrade has changed.

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
from aiohttp import hdrs, web
from aiohttp.abc import AbstractStreamWriter
from aiohttp.base_protocol import BaseProtocol
from aiohttp.compression_utils import ZLibCompressor
from aiohttp.helpers import must_be_empty_body
from aiohttp.http import HttpVersion, RawRequestMessage
from aiohttp.http_parser import DeflateBuffer
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader
from aiohttp.test_utils import make_mocked_request
from aiohttp.web_app import _cached_build_middleware
from aiohttp.web_request import BaseRequest
from aiohttp.web_urldispatcher import PlainResource, UrlDispatcher, UrlMappingMatchInfo
from multidict import CIMultiDict, CIMultiDictProxy, istr
from yarl import URL


def parameters(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_a_body_waits_for_more_in_one_method_that_is_overridden() -> None:
    assert parameters(StreamReader._wait) == ["func_name"], "aiohttp waits for a body differently: see _Body._wait"
    for name in ("read", "readany", "readchunk", "readuntil"):
        source = inspect.getsource(getattr(StreamReader, name))
        assert "self._wait(" in source, f"StreamReader.{name} no longer calls _wait: see _Body._wait"


def test_a_body_asks_of_its_protocol_what_an_exchange_has() -> None:
    asked = set(re.findall(r"self\._protocol\.(\w+)", inspect.getsource(StreamReader)))
    known = {"connected", "pause_reading", "resume_reading"}
    assert asked == known, f"StreamReader asks other things of its protocol: {asked ^ known}, see _Exchange"
    assert parameters(BaseProtocol.resume_reading) == ["resume_parser"], "see _Exchange.resume_reading"


def test_a_request_asks_of_its_protocol_what_an_exchange_has() -> None:
    source = "".join(
        line for line in inspect.getsource(BaseRequest).splitlines(keepends=True) if "aiohttp." not in line
    )
    asked = set(re.findall(r"protocol\.(\w+)", source))
    known = {"ssl_context", "peername", "sockname", "transport", "max_field_size", "max_headers"}
    assert asked == known, f"requests ask other things of their protocol: {asked ^ known}, see _Exchange"


def test_the_decoder_tells_whether_it_holds_more() -> None:
    assert parameters(DeflateBuffer.__init__) == ["out", "encoding", "max_decompress_size"], "see _Body.__init__"
    assert parameters(DeflateBuffer.feed_data) == ["chunk", "size"], "see _Body._decode"
    assert "data_available" in inspect.getsource(DeflateBuffer.feed_data), "see _Body._decode"


def test_a_request_message_has_ten_parts() -> None:
    message = RawRequestMessage(
        "GET", "/", HttpVersion(1, 1), CIMultiDictProxy(CIMultiDict()), (), False, None, False, False, URL("/")
    )
    assert (message.method, message.path, message.should_close, message.compression) == ("GET", "/", False, None), (
        "the parts of a request message have changed: see _Exchange.request"
    )
    assert (message.upgrade, message.chunked, message.url) == (False, False, URL("/")), "see _Exchange.request"


async def test_a_runner_has_a_server_that_makes_requests_and_runs_handlers() -> None:
    runner = web.AppRunner(web.Application())
    await runner.setup()
    server = runner.server
    assert server is not None
    assert parameters(server.request_factory)[:5] == ["message", "payload", "protocol", "writer", "task"], (
        "requests are made of other things: see _Exchange.request"
    )
    assert parameters(server.request_handler) == ["request"], "see AiohttpASGI._answer"
    await runner.cleanup()


async def test_a_request_has_the_attributes_that_are_set_or_made_when_asked_for() -> None:
    known = {
        "_message", "_protocol", "_payload_writer", "_payload", "_headers", "_method", "_version", "_cache", "_rel_url",
        "_state", "_task", "_client_max_size", "_loop", "_transport_sslcontext",
        "_transport_peername", "_transport_sockname",
    }  # fmt: skip
    made = set(vars(make_mocked_request("GET", "/")))
    assert made - {"_match_info", "_client_max_fields"} == known, (
        f"requests are made of other things: {made ^ known}, see _Request"
    )
    assert web.Request._read_bytes is None, "Request.read keeps the body elsewhere: see _Request.read"
    request = make_mocked_request("POST", "/", payload=EMPTY_PAYLOAD)
    request._read_bytes = b"kept"
    assert await request.read() == b"kept", "Request.read keeps the body elsewhere: see _Request.read"


def test_a_writer_has_these_methods() -> None:
    known = {"write", "write_eof", "drain", "enable_compression", "enable_chunking", "write_headers"}
    assert AbstractStreamWriter.__abstractmethods__ == known, "the methods of a writer have changed: see _Exchange"
    assert hasattr(AbstractStreamWriter, "send_headers"), "see _Exchange.send_headers"
    assert parameters(ZLibCompressor.__init__)[0] == "encoding", "see _Exchange.enable_compression"


def test_responses_without_a_body_are_known() -> None:
    without = [must_be_empty_body(*response) for response in (("HEAD", 404), ("CONNECT", 200), ("GET", 199))]
    assert all(without), "must_be_empty_body has changed: see _Exchange.write_headers"
    assert not must_be_empty_body("CONNECT", 404), "must_be_empty_body has changed: see _Exchange.write_headers"


@pytest.mark.parametrize(
    "name",
    [
        "_body", "_headers", "_status", "_compression", "_chunked", "_cookies", "_keep_alive", "_payload_writer",
        "_eof_sent",
    ],
)  # fmt: skip
def test_a_plain_response_has_the_attributes_that_are_read(name: str) -> None:
    assert hasattr(web.Response(), name), f"Response.{name} is gone: see _whole"


def test_a_response_does_nothing_that_the_direct_path_would_miss() -> None:
    known = {
        "_body", "_cache", "_chunked", "_compressed_body", "_compression", "_compression_force",
        "_compression_strategy", "_content_dict", "_content_type", "_cookies", "_eof_sent", "_headers", "_keep_alive",
        "_length_check", "_must_be_empty_body", "_parsed_content_type", "_payload_writer", "_reason", "_req",
        "_send_headers_immediately", "_state", "_status", "_stored_content_type", "_zlib_executor",
        "_zlib_executor_size", "_body_length", "_seen_str_keys", "_abc_impl",
    }  # fmt: skip
    attributes = {name for name in vars(web.Response()) if name.startswith("_")}
    attributes |= {
        name
        for kind in (web.Response, web.StreamResponse)
        for name, value in vars(kind).items()
        if name.startswith("_")
        and not name.startswith("__")
        and not callable(value)
        and not isinstance(value, property)
    }
    assert attributes <= known, f"responses have more to them: {attributes - known}, see _whole"


async def test_a_sent_response_is_prepared() -> None:
    response = web.Response()
    response._eof_sent = True
    assert response.prepared, "_eof_sent no longer tells that a response has been sent: see _whole"


def test_the_files_of_a_form_are_closed_by_finish() -> None:
    assert parameters(web.Request._finish) == [], "Request._finish has changed: see _close_files"
    assert ".close()" in inspect.getsource(web.Request._finish), "see _close_files"


def test_applications_know_their_sub_applications() -> None:
    app, sub = web.Application(), web.Application()
    app.add_subapp("/sub", sub)
    assert app._subapps == [sub], "Application._subapps has changed: see _has_hooks"


def test_header_names_are_known() -> None:
    names = [name for name in vars(hdrs).values() if isinstance(name, istr)]
    assert len(names) > 50, "aiohttp.hdrs no longer holds names of headers as istr: see _REQUEST_NAMES"
    assert EMPTY_PAYLOAD.at_eof()


async def test_a_file_is_read_when_sendfile_is_not_implemented() -> None:
    source = inspect.getsource(web.FileResponse._sendfile)
    assert "except NotImplementedError" in source, "FileResponse takes another error for 'read it': see _Transport"
    assert "_sendfile_compatible" in inspect.getsource(asyncio.BaseEventLoop.sendfile), "see _Transport"


def used(function: Callable[..., Any], *names: str) -> set[str]:
    return set(re.findall(rf"\b(?:{'|'.join(names)})\.(\w+)", inspect.getsource(function)))


def test_a_request_is_handled_in_the_known_steps() -> None:
    known = {
        "_router", "add_app", "freeze", "_match_info", "headers", "expect_handler", "writer", "handler",
        "_run_middlewares", "_has_legacy_middlewares", "route", "apps",
    }  # fmt: skip
    found = used(web.Application._handle, "self", "request", "match_info")
    assert found == known, f"applications handle requests in other steps: {found ^ known}, see _fixed_routes"
    assert parameters(_cached_build_middleware) == ["handler", "apps"], "see _fixed_routes"


def test_a_route_is_found_in_the_known_steps() -> None:
    known = {"_resource_index", "_matched_sub_app_resources", "rel_url", "method"}
    found = used(UrlDispatcher.resolve, "self", "request")
    assert found == known, f"routers look at other things: {found ^ known}, see _fixed_routes"
    known = {"_match", "_routes", "_any_route", "_allowed_methods", "rel_url", "method", "_path"}
    found = used(PlainResource.resolve, "self", "request") | used(PlainResource._match, "self")
    assert found == known, f"plain resources look at other things: {found ^ known}, see _fixed_routes"
    assert parameters(UrlMappingMatchInfo.__init__) == ["match_dict", "route"], "see _Request._match_info"
    assert web.Request._match_info is None, "requests keep their route elsewhere: see _Request._match_info"
