"""Paths with more segments than any route are not found, without a search."""

from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import make_mocked_request
from aiohttp.web_urldispatcher import DynamicResource, MatchInfoError, UrlDispatcher, UrlMappingMatchInfo

from tests.fakes import quick_app


@pytest.fixture
def searched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The paths that are looked up by the router of aiohttp."""
    paths: list[str] = []
    resolve = UrlDispatcher.resolve

    async def recording(self: UrlDispatcher, request: web.Request) -> UrlMappingMatchInfo:
        paths.append(request.path)
        return await resolve(self, request)

    monkeypatch.setattr(UrlDispatcher, "resolve", recording)
    return paths


@pytest.mark.parametrize(
    ("path", "is_searched", "found"),
    [
        ("/", True, "/"),
        ("/users", True, "/users"),
        ("/users/a%2Fb%2Fc%2Fd", True, "/users/{user_id}"),
        ("/docs/static/swagger-ui.css", True, "/docs/static/{name}"),
        ("/docs/static/", True, None),
        ("/docs/static/x/", False, None),
        ("/users//", True, None),
        ("/users" + "/" * 3, False, None),
        ("/" * 8000, False, None),
        ("/." * 4000, False, None),
        ("/.." * 2500, False, None),
        ("/%41" * 2000, False, None),
    ],
)
async def test_only_paths_that_a_route_could_match_are_looked_up(
    searched: list[str], path: str, is_searched: bool, found: str | None
) -> None:
    match_info = await quick_app().router.resolve(make_mocked_request("GET", path))
    assert len(searched) == is_searched
    if found is None:
        assert isinstance(match_info, MatchInfoError)
        assert isinstance(match_info.http_exception, web.HTTPNotFound)
    else:
        resource: Any = match_info.route.resource
        assert resource.canonical == found


def test_no_variable_part_of_a_route_matches_a_slash() -> None:
    for resource in quick_app().router.resources():
        if isinstance(resource, DynamicResource):
            pattern = resource.get_info()["pattern"]
            assert not any(pattern.fullmatch(f"{resource.canonical.partition('{')[0]}{part}") for part in ("/", "a/b"))
