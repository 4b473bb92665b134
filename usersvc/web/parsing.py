"""Reads requests for the validation middleware of aiohttp-apispec, and tells every broken field at once."""

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
from usersvc.web.schemas.users import violations_in

# The library's middleware puts what it read under a plain string, which aiohttp advises against.
warnings.filterwarnings("ignore", category=web.NotAppKeyWarning, module=r"aiohttp_apispec\.")

VIOLATIONS = web.RequestKey("VIOLATIONS", list[Violation])
"""What is known to be wrong with a request, the rest of which is still to be looked at."""

Rules = Callable[..., Iterable[Violation]]

CODINGS = ("identity", "gzip", "deflate")
"""Content codings of a body (RFC 9110, section 8.4); the size limit is that of the decoded body."""

KNOWN_QUERIES = 256
"""How many queries' meanings are kept: lists are asked for in few ways, but for their cursors."""

MAX_NAMES = 100
"""How many members a body, and parameters a query, may have: naming each that is unknown takes its time."""

BODY_TIMEOUT = 30.0
"""How long the body of a request may take to arrive, in seconds."""


def refuse_too_many(field: str, names: int) -> None:
    """Return if a part of a request has no more names than it may.

    Raises:
        InvalidRequest: it has.
    """
    if names > MAX_NAMES:
        raise InvalidRequest([Violation(field, "too-many", f"Must have at most {MAX_NAMES} names.")])


class StrictParser(AIOHTTPParser):
    """webargs' parser for aiohttp, with our reading of JSON and of queries, and our errors."""

    def __init__(self, *, rules: Mapping[type[Schema], Rules], body_timeout: float = BODY_TIMEOUT) -> None:
        """Make a parser.

        Args:
            rules: for a schema, what tells which rules the well-shaped part of some data breaks.
            body_timeout: how long a body may take to arrive, in seconds.
        """
        super().__init__()
        self._rules = rules
        self._body_timeout = body_timeout
        self._queries: dict[tuple[Schema, str], dict[str, Any]] = {}

    async def parse(  # type: ignore[override]  # the library's own has parameters that nobody here gives
        self, argmap: Schema, req: web.Request, *, location: str, unknown: str | None
    ) -> Any:
        """Read one part of a request.

        Raises:
            InvalidRequest: once the last part is read, with what is wrong with any of them.
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
                # Nothing else will look at what is well-shaped.
                raise InvalidRequest([*found, *self._broken(argmap, data)])
        elif query is not None:
            self._remember(query, data)
        return data

    def _remember(self, query: tuple[Schema, str], meaning: dict[str, Any]) -> None:
        """Keep what a query means, which is the same each time and takes long to find out; the oldest gives way."""
        if len(self._queries) >= KNOWN_QUERIES:
            del self._queries[next(iter(self._queries))]
        self._queries[query] = meaning.copy()

    async def load_json(self, req: web.Request, schema: Schema) -> Any:
        """The body, parsed.

        Raises:
            UnsupportedMediaType: it is not announced as JSON in UTF-8.
            BodyTooLarge: it is larger than the application takes.
            RequestTimeout: it did not arrive in time.
            MalformedJson: it is not JSON.
            InvalidRequest: it has more members than anybody needs.
        """
        if req.content_type != "application/json" or "Content-Type" not in req.headers:
            raise UnsupportedMediaType("The body has to be application/json.")
        if (req.charset or "utf-8").lower() not in {"utf-8", "utf8"}:
            raise UnsupportedMediaType("JSON has to be in UTF-8.")
        if req.headers.get("Content-Encoding", "identity").lower() not in CODINGS:
            raise UnsupportedMediaType(f"The body may be in the codings {', '.join(CODINGS)}.")
        # What announces itself as too large is refused before it is read.
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
        """The headers that the schema knows; of one that comes more than once, the list of its values."""
        names = [declared.data_key or name for name, declared in schema.fields.items()]
        values = {name: req.headers.getall(name) for name in names if name in req.headers}
        return {name: given if len(given) > 1 else given[0] for name, given in values.items()}

    def load_querystring(self, req: web.Request, schema: Schema) -> Any:
        """The query; of a parameter that comes more than once, the list of its values.

        Raises:
            InvalidRequest: it has more parameters than anybody needs.
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
        """Turn a failure of the shape into a refusal of the request.

        Raises:
            InvalidRequest: with what breaks the shape, and with the rules that the well-shaped rest breaks.
        """
        # webargs files the messages under the location.
        [by_field] = error.messages_dict.values()
        violations = [*violations_in(by_field)]
        violations += self._broken(schema, error.valid_data)
        raise InvalidRequest(violations)

    def _broken(self, schema: Schema, data: object) -> Iterable[Violation]:
        """The rules that the well-shaped part of some data breaks."""
        rules = self._rules.get(type(schema))
        return rules(**data) if rules is not None and isinstance(data, dict) else ()
