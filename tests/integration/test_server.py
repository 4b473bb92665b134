"""What `usersvc.server` relies on inside uvicorn: a failure here says what an upgrade has changed."""

import inspect

import pytest
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from usersvc.server.http_protocol import HardenedProtocol


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("connection_made", ["transport"]),
        ("connection_lost", ["exc"]),
        ("data_received", ["data"]),
        ("on_message_begin", []),
        ("on_headers_complete", []),
        ("on_body", ["body"]),
        ("on_response_complete", []),
        ("timeout_keep_alive_handler", []),
        ("pause_writing", []),
        ("resume_writing", []),
        ("_unset_keepalive_if_required", []),
    ],
)
def test_uvicorn_has_the_methods_that_are_overridden_or_called(name: str, parameters: list[str]) -> None:
    assert [*inspect.signature(getattr(HttpToolsProtocol, name)).parameters] == ["self", *parameters]


def test_uvicorn_keeps_what_is_looked_at_under_the_same_names() -> None:
    connection = inspect.getsource(HttpToolsProtocol)
    for name in (
        "self.parser = httptools.HttpRequestParser(self)",
        "self.timeout_keep_alive_task: TimerHandle | None = None",
        "self.connections = server_state.connections",
        "self.limit_concurrency = config.limit_concurrency",
        "self.pipeline: deque",
        "self.cycle: RequestResponseCycle",
        "self.flow = FlowControl(transport)",
        "self.headers = []",
        'self.url = b""',
    ):
        assert name in connection
    cycle = inspect.getsource(RequestResponseCycle.__init__)
    for name in (
        "self.keep_alive",
        "self.more_body",
        "self.response_started",
        "self.response_complete",
        "self.disconnected",
        "self.waiting_for_100_continue",
        "self.message_event",
    ):
        assert name in cycle


def test_what_stands_in_for_uvicorns_reading_does_what_it_did() -> None:
    source = inspect.getsource(HttpToolsProtocol.data_received)
    # Its beginning is left out on purpose; the rest has an equal in HardenedProtocol.data_received.
    steps = ("_unset_keepalive_if_required()", "feed_data(data)", "HttpParserError", "HttpParserUpgrade")
    places = [source.index(step) for step in steps]
    assert places == sorted(places)
    assert issubclass(HardenedProtocol, HttpToolsProtocol)
