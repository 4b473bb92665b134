"""The problems (RFC 9457): each error code with its status, and the code of each exception."""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import orjson
from aiohttp import web

from usersvc.application.errors import QueueFull, StorageUnavailable
from usersvc.application.registration import IdempotencyKeyReused
from usersvc.domain.errors import EmailAlreadyRegistered, ValidationFailed

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


class RequestRefused(Exception):
    """A refusal by the web side or the server.

    Args:
        code: that of a row of ``PROBLEMS``.
        text: for the client, so without secrets; by default the description of the problem.
        headers: of the response, in place of those in the table.
    """

    def __init__(self, code: str, text: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(text)
        self.problem = PROBLEMS[code]
        self.headers = headers or {}


HeadTooLarge = partial(RequestRefused, "head-too-large")
HttpVersionNotSupported = partial(RequestRefused, "http-version-not-supported")
MalformedHttp = partial(RequestRefused, "malformed-http")
RequestTimeout = partial(RequestRefused, "request-timeout")
TargetTooLong = partial(RequestRefused, "target-too-long")
TooManyConnections = TooManyWaiting = Stopping = partial(RequestRefused, "overloaded")
TransferCodingNotImplemented = partial(RequestRefused, "transfer-coding-not-implemented")


@dataclass(frozen=True, slots=True)
class Problem:
    """A kind of problem, as ``GET /problems/{code}`` shows it."""

    code: str
    status: int
    description: str
    headers: Mapping[str, str] = field(default_factory=dict)
    """Of the response."""

    @property
    def title(self) -> str:
        """The code in words."""
        return _TITLES.get(self.code, self.code.replace("-", " ").capitalize())


_TITLES = {
    "malformed-json": "Malformed JSON",
    "malformed-http": "Malformed HTTP",
    "email-taken": "Email address taken",
    "http-version-not-supported": "HTTP version not supported",
}
_RETRY = {"Retry-After": "5"}
_LIMITS = {"Retry-After": "60", "RateLimit-Policy": '"register";q=60;w=60', "RateLimit": '"register";r=0;t=60'}

PROBLEMS: Mapping[str, Problem] = {
    problem.code: problem
    for problem in (
        Problem(
            "malformed-json",
            400,
            "The body is not strict JSON: syntax error, not UTF-8, duplicate member, NaN or Infinity, or too deep.",
        ),
        Problem("malformed-http", 400, "The request is not valid HTTP (RFC 9112)."),
        Problem(
            "unauthorized",
            401,
            "The resource requires the admin token, as Authorization: Bearer.",
            {"WWW-Authenticate": 'Bearer realm="usersvc"'},
        ),
        Problem("not-found", 404, "There is nothing at this path."),
        Problem("user-not-found", 404, "There is no user with this id."),
        Problem(
            "method-not-allowed",
            405,
            "The resource does not support this method; the Allow header lists the supported ones.",
        ),
        Problem("not-acceptable", 406, "The resource has none of the media types in the Accept header."),
        Problem("request-timeout", 408, "The request did not arrive in time."),
        Problem("email-taken", 409, "A user with this mailbox is already registered, possibly in another spelling."),
        Problem("body-too-large", 413, "The body of the request is larger than the service accepts."),
        Problem("target-too-long", 414, "The path and the query of the request are longer than the service accepts."),
        Problem(
            "unsupported-media-type",
            415,
            "The body must be application/json, in UTF-8.",
            {"Accept": "application/json"},
        ),
        Problem(
            "validation-failed",
            422,
            "Fields of the body or parameters of the query are invalid; errors lists all of them.",
        ),
        Problem("idempotency-key-reused", 422, "The Idempotency-Key was used before, for another registration."),
        Problem("rate-limited", 429, "Too many requests from this address; Retry-After says when to retry.", _LIMITS),
        Problem(
            "head-too-large",
            431,
            "The header fields of the request are larger, or more, than the service accepts.",
        ),
        Problem(
            "internal-error",
            500,
            "The service failed unexpectedly. The request id identifies the failure in the log.",
        ),
        Problem(
            "transfer-coding-not-implemented",
            501,
            "The only transfer coding of a body that the service knows is chunked.",
        ),
        Problem("overloaded", 503, "The service is overloaded or stopping; retry the request later.", _RETRY),
        Problem(
            "storage-unavailable",
            503,
            "The storage does not respond. A registration may or may not have been stored; it can be retried.",
            _RETRY,
        ),
        Problem("http-version-not-supported", 505, "The service supports HTTP/1.0 and HTTP/1.1."),
    )
}

_CODE_OF: Mapping[type[Exception], str] = {
    web.HTTPBadRequest: "malformed-json",
    web.RequestPayloadError: "malformed-json",
    web.HTTPNotFound: "not-found",
    web.HTTPMethodNotAllowed: "method-not-allowed",
    EmailAlreadyRegistered: "email-taken",
    web.HTTPRequestEntityTooLarge: "body-too-large",
    ValidationFailed: "validation-failed",
    IdempotencyKeyReused: "idempotency-key-reused",
    Exception: "internal-error",
    QueueFull: "overloaded",
    StorageUnavailable: "storage-unavailable",
}
"""The problem of each exception and its subclasses, besides ``RequestRefused``."""


def members(problem: Problem, detail: str, request_id: str) -> dict[str, Any]:
    """The members of every problem document (RFC 9457, section 3.1), and the code."""
    return {
        "type": f"/problems/{problem.code}",
        "title": problem.title,
        "status": problem.status,
        "detail": detail,
        "instance": f"/requests/{quote(request_id, safe='')}",
        "code": problem.code,
    }


def problem_response(error: Exception, request_id: str) -> web.Response:
    """The response to a failure. Failures of the service are logged; unexpected ones reveal nothing."""
    detail = ""
    headers: Mapping[str, str] = {}
    if isinstance(error, RequestRefused):
        problem, detail, headers = error.problem, str(error), error.headers
    else:
        # The row of the class, or of its nearest base class that has one.
        problem = next(PROBLEMS[_CODE_OF[kind]] for kind in type(error).__mro__ if kind in _CODE_OF)
    if isinstance(error, QueueFull):
        headers = {"Retry-After": str(error.retry_after)}
    elif isinstance(error, web.HTTPMethodNotAllowed):
        headers = {"Allow": error.headers["Allow"]}
    elif isinstance(error, StorageUnavailable):
        log.error("request failed: %s: %s", problem.code, error, extra={"request_id": request_id})
    elif problem.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("request failed: %s", problem.code, extra={"request_id": request_id}, exc_info=error)
    document = members(problem, detail or problem.description, request_id)
    if isinstance(error, ValidationFailed):
        document["errors"] = [asdict(violation) for violation in error.violations]
    body, headers = orjson.dumps(document), {**problem.headers, **headers}
    return web.Response(body=body, status=problem.status, headers=headers, content_type=MEDIA_TYPE)
