"""Parses requests for the validation middleware of aiohttp-apispec, and reports every broken field at once."""

import asyncio
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Never

from aiohttp import web
from marshmallow import Schema, ValidationError
from webargs.aiohttpparser import AIOHTTPParser

from usersvc import strict_json
from usersvc.domain.errors import Violation
from usersvc.web.problems import BodyTooLarge, InvalidRequest, MalformedJson, RequestTimeout, UnsupportedMediaType
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
"""How long the body of a request may take to arrive, in seconds."""


def refuse_too_many(field: str, names: int) -> None:
    """Raise ``InvalidRequest`` if a part of a request has more than ``MAX_NAMES`` names."""
    if names > MAX_NAMES:
        raise InvalidRequest([Violation(field, "too-many", f"Must have at most {MAX_NAMES} names.")])


class StrictParser(AIOHTTPParser):
    """The webargs parser for aiohttp, with strict JSON, and the errors of this service."""

    def __init__(self, *, rules: Mapping[type[Schema], Rules], body_timeout: float = BODY_TIMEOUT) -> None:
        """Make a parser.

        Args:
            rules: for a schema, returns the business rules that valid fields break.
            body_timeout: how long a body may take to arrive, in seconds.
        """
        super().__init__()
        self._rules = rules
        self._body_timeout = body_timeout
        self._queries: dict[tuple[Schema, str], dict[str, Any]] = {}

    async def parse(  # type: ignore[override]  # without parameters that are not used here
        self, argmap: Schema, req: web.Request, *, location: str, unknown: str | None
    ) -> Any:
        """Parse one part of a request. This is the only place that raises violations, of all parts at once.

        Raises:
            InvalidRequest: after the last part, with the violations in all parts.
            RequestRefused: see ``load_json``.
        """
        query = (argmap, req.raw_path.partition("?")[2]) if location == "querystring" else None
        if query is not None and (known := self._queries.get(query)) is not None:
            return known.copy()
        try:
            data = await super().parse(argmap, req, location=location, unknown=unknown)
        except InvalidRequest as refused:
            req[VIOLATIONS] = [*req.get(VIOLATIONS, ()), *refused.violations]
            data = {}
        if found := req.get(VIOLATIONS):
            [*_, last] = req.match_info.handler.__schemas__  # type: ignore[attr-defined]  # aiohttp-apispec's own
            if location == last["location"]:
                # The use case, which checks the rules, is not called.
                raise InvalidRequest([*found, *self._broken(argmap, data)])
        elif query is not None:
            self._cache(query, data)
        return data

    def _cache(self, query: tuple[Schema, str], data: dict[str, Any]) -> None:
        """Cache a parsed query; the oldest is evicted."""
        if len(self._queries) >= CACHED_QUERIES:
            del self._queries[next(iter(self._queries))]
        self._queries[query] = data.copy()

    async def load_json(self, req: web.Request, schema: Schema) -> Any:
        """Parse the body.

        Raises:
            UnsupportedMediaType: its headers do not declare JSON in UTF-8.
            BodyTooLarge: it exceeds the limit of the application.
            RequestTimeout: it did not arrive in time.
            MalformedJson: it is not JSON.
            InvalidRequest: it has more than ``MAX_NAMES`` members.
        """
        if req.content_type != "application/json" or "Content-Type" not in req.headers:
            raise UnsupportedMediaType("The body must be application/json.")
        if (req.charset or "utf-8").lower() not in {"utf-8", "utf8"}:
            raise UnsupportedMediaType("JSON must be in UTF-8.")
        if req.headers.get("Content-Encoding", "identity").lower() not in CODINGS:
            raise UnsupportedMediaType(f"The content coding must be one of {', '.join(CODINGS)}.")
        # A body that is declared too large is refused before it is read.
        if (req.content_length or 0) > req.client_max_size:
            raise BodyTooLarge(f"The body may have at most {req.client_max_size} bytes.")
        try:
            async with asyncio.timeout(self._body_timeout):
                body = await req.read()
        except TimeoutError:
            raise RequestTimeout("The body did not arrive in time.") from None
        try:
            document = strict_json.loads(body)
        except strict_json.InvalidJson as error:
            raise MalformedJson(f"The body {error}.") from None
        if isinstance(document, dict):
            refuse_too_many("body", len(document))
        return document

    def load_headers(self, req: web.Request, schema: Schema) -> Any:
        """The headers of the schema; a list of values for a repeated one."""
        names = [declared.data_key or name for name, declared in schema.fields.items()]
        values = {name: req.headers.getall(name) for name in names if name in req.headers}
        return {name: given if len(given) > 1 else given[0] for name, given in values.items()}

    def load_querystring(self, req: web.Request, schema: Schema) -> Any:
        """The query; a list of values for a repeated parameter.

        Raises:
            InvalidRequest: it has more than ``MAX_NAMES`` parameters.
        """
        refuse_too_many("query", len(req.query))
        values = {name: req.query.getall(name) for name in req.query}
        return {name: given if len(given) > 1 else given[0] for name, given in values.items()}

    def handle_error(
        self,
        error: ValidationError,
        req: web.Request,
        schema: Schema,
        *,
        error_status_code: int | None,
        error_headers: Mapping[str, str] | None,
    ) -> Never:
        """Raise ``InvalidRequest`` with the fields that are malformed, and the rules that the other fields break."""
        # webargs groups the messages by location.
        [by_field] = error.messages_dict.values()
        violations = [*violations_in(by_field)]
        violations += self._broken(schema, error.valid_data)
        raise InvalidRequest(violations)

    def _broken(self, schema: Schema, data: object) -> Iterable[Violation]:
        """The rules that valid fields break."""
        rules = self._rules.get(type(schema))
        return rules(**data) if rules is not None and isinstance(data, dict) else ()
