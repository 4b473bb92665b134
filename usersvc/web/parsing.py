"""Parses requests for the validation middleware of aiohttp-apispec, and reports every broken field at once."""

import asyncio
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from aiohttp import web
from marshmallow import Schema, ValidationError
from multidict import MultiMapping

from usersvc import strict_json
from usersvc.domain.errors import ValidationFailed, Violation
from usersvc.web.problems import RequestRefused
from usersvc.web.schemas.fields import violations_in

# The middleware of the library stores parsed data under plain strings, which aiohttp warns about.
warnings.filterwarnings("ignore", category=web.NotAppKeyWarning, module=r"aiohttp_apispec\.")

VIOLATIONS = web.RequestKey("VIOLATIONS", list[Violation])
"""The violations in the parts of a request that have been parsed, until the last part is."""

Rules = Callable[..., Iterable[Violation]]

CODINGS = ("identity", "gzip", "deflate")
"""Content codings of a body (RFC 9110, section 8.4); the size limit is that of the decoded body."""

CACHED_QUERIES = 256
"""How many parsed queries are cached: apart from cursors, few different ones are used."""

MAX_NAMES = 100
"""The maximum number of members of a body and of parameters of a query: reporting unknown ones takes time."""

BODY_TIMEOUT = 30.0
"""How long the body of a request may take to arrive, in seconds, before it is refused with 408."""


class Parser:
    """The part of a webargs parser that the validation middleware uses.

    Args:
        rules: for a schema, returns the business rules that valid fields break.
    """

    def __init__(self, rules: Mapping[type[Schema], Rules]) -> None:
        self._rules = rules
        self._queries: dict[tuple[Schema, str], dict[str, Any]] = {}

    async def parse(self, schema: Schema, request: web.Request, *, location: str, **_: object) -> dict[str, Any]:
        """Parse one part of a request. This is the only place that raises violations, of all parts at once.

        Raises:
            ValidationFailed: after the last part, with the violations in all parts.
            RequestRefused: the body cannot be read as JSON.
        """
        query = (schema, request.rel_url.raw_query_string) if location == "querystring" else None
        if query is not None and (known := self._queries.get(query)) is not None:
            return known.copy()
        data, violations = await _load(schema, request, location)
        if found := [*request.get(VIOLATIONS, ()), *violations]:
            request[VIOLATIONS] = found
            [*_, last] = request.match_info.handler.__schemas__  # type: ignore[attr-defined]  # aiohttp-apispec's own
            if location == last["location"]:
                # The use case, which checks the rules, is not called.
                rules = self._rules.get(type(schema))
                raise ValidationFailed([*found, *(rules(**data) if rules else ())])
        elif query is not None:
            if len(self._queries) >= CACHED_QUERIES:
                del self._queries[next(iter(self._queries))]
            self._queries[query] = data.copy()
        return data


async def _load(schema: Schema, request: web.Request, location: str) -> tuple[dict[str, Any], Sequence[Violation]]:
    """The valid fields of a part of a request, and the violations in the others."""
    try:
        match location:
            case "json":
                given = await read_json(request)
            case "headers":
                names = [declared.data_key or name for name, declared in schema.fields.items()]
                given = _values(request.headers, names)
            case _:
                _refuse_too_many("query", len(request.query))
                given = _values(request.query, request.query)
        return schema.load(given), ()
    except ValidationFailed as refused:
        return {}, refused.violations
    except ValidationError as error:
        valid = error.valid_data
        return valid if isinstance(valid, dict) else {}, [*violations_in(error.messages)]


def _values(source: MultiMapping[str], names: Iterable[str]) -> dict[str, str | list[str]]:
    """The values by name; a list for a repeated one."""
    values = {name: source.getall(name) for name in names if name in source}
    return {name: given if len(given) > 1 else given[0] for name, given in values.items()}


def _refuse_too_many(field: str, names: int) -> None:
    if names > MAX_NAMES:
        raise ValidationFailed([Violation(field, "too-many", f"Must have at most {MAX_NAMES} names.")])


async def read_json(request: web.Request) -> Any:
    """The JSON document in the body of a request.

    Raises:
        RequestRefused: the headers do not declare JSON in UTF-8, or the body is too large, too slow or not JSON.
        ValidationFailed: it has more than ``MAX_NAMES`` members.
    """
    if request.content_type != "application/json" or "Content-Type" not in request.headers:
        raise RequestRefused("unsupported-media-type", "The body must be application/json.")
    if (request.charset or "utf-8").lower() not in {"utf-8", "utf8"}:
        raise RequestRefused("unsupported-media-type", "JSON must be in UTF-8.")
    if request.headers.get("Content-Encoding", "identity").lower() not in CODINGS:
        raise RequestRefused("unsupported-media-type", f"The content coding must be one of {', '.join(CODINGS)}.")
    # A body that is declared too large is refused before it is read.
    if (request.content_length or 0) > request.client_max_size:
        raise RequestRefused("body-too-large", f"The body may have at most {request.client_max_size} bytes.")
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            document = strict_json.loads(await request.read())
    except TimeoutError:
        raise RequestRefused("request-timeout", "The body did not arrive in time.") from None
    except strict_json.InvalidJson as error:
        raise RequestRefused("malformed-json", f"The body {error}.") from None
    if isinstance(document, dict):
        _refuse_too_many("body", len(document))
    return document
