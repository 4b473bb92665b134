"""ONE table of everything that can go wrong: error type -> status and code, told as RFC 9457 problems."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

import orjson
from aiohttp import web

from usersvc.application.errors import QueueFull, StorageUnavailable
from usersvc.application.registration import IdempotencyKeyReused
from usersvc.domain.errors import EmailAlreadyRegistered, ValidationFailed, Violation

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


class RequestRefused(Exception):
    """The web side's own refusal of a request; its text is for the client and repeats nothing secret."""

    def __init__(self, text: str = "", headers: Mapping[str, str] | None = None) -> None:
        """Make a refusal.

        Args:
            text: for the client.
            headers: of the answer, over those of the row in the table.
        """
        super().__init__(text)
        self.headers = headers or {}


class MalformedJson(RequestRefused):
    """The body is not JSON as RFC 8259 and I-JSON (RFC 7493) have it."""


class Unauthorized(RequestRefused):
    """The request does not show that it may; whether what it asks for exists is not told."""


class RateLimited(RequestRefused):
    """The client asks too often."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        """Make a refusal.

        Args:
            headers: ``Retry-After`` and whatever else tells when to come again.
        """
        super().__init__(f"Too many requests from this address; come again in {headers['Retry-After']} s.", headers)


class UserNotFound(RequestRefused):
    """There is no user with this id."""


class NotAcceptable(RequestRefused):
    """The client takes none of the media types that the resource has."""


class RequestTimeout(RequestRefused):
    """The request did not arrive in time."""


class MalformedHttp(RequestRefused):
    """What came is no request that HTTP/1.1 (RFC 9112) allows."""


class TargetTooLong(RequestRefused):
    """The target of the request is longer than the server takes."""


class HeadTooLarge(RequestRefused):
    """The head of the request is larger, or has more fields, than the server takes."""


class TransferCodingNotImplemented(RequestRefused):
    """The body is in a transfer coding other than chunked (RFC 9112, section 6.1)."""


class HttpVersionNotSupported(RequestRefused):
    """The request is in a version of HTTP other than 1.0 and 1.1 (RFC 9110, section 15.6.6)."""


class TooManyConnections(RequestRefused):
    """All connections that the server takes are in use."""


class TooManyWaiting(RequestRefused):
    """As many requests as may wait on one connection wait already."""


class Stopping(RequestRefused):
    """The service is being stopped and does not end what the request asked for."""


class BodyTooLarge(RequestRefused):
    """The body is larger than the service takes."""


class UnsupportedMediaType(RequestRefused):
    """The body is of a media type or in a coding that the service does not read."""


class InvalidRequest(RequestRefused):
    """The body or the query breaks rules; ``violations`` names them all."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__()
        self.violations = tuple(violations)


@dataclass(frozen=True, slots=True)
class Problem:
    """A kind of problem: what ``GET /problems/{code}`` tells of it."""

    code: str
    status: int
    title: str
    description: str
    errors: tuple[type[Exception], ...] = ()
    """What is raised when it happens; a subclass is the same problem."""
    headers: Mapping[str, str] | None = None


PROBLEMS: Mapping[str, Problem] = {
    problem.code: problem
    for problem in (
        Problem(
            "malformed-json",
            400,
            "Malformed JSON",
            "The body is no JSON: a syntax error, not UTF-8, a member name twice, NaN or Infinity, or nested too deep.",
            (MalformedJson, web.HTTPBadRequest, web.RequestPayloadError),
        ),
        Problem(
            "malformed-http",
            400,
            "Malformed HTTP",
            "What was sent is no HTTP request: see RFC 9112.",
            (MalformedHttp,),
        ),
        Problem(
            "unauthorized",
            401,
            "Unauthorized",
            "The resource needs the admin token, as Authorization: Bearer.",
            (Unauthorized,),
            {"WWW-Authenticate": 'Bearer realm="usersvc"'},
        ),
        Problem(
            "not-found",
            404,
            "Not found",
            "There is nothing at this path.",
            (web.HTTPNotFound,),
        ),
        Problem("user-not-found", 404, "User not found", "There is no user with this id.", (UserNotFound,)),
        Problem(
            "method-not-allowed",
            405,
            "Method not allowed",
            "The resource does not know this method; the header Allow lists those that it knows.",
            # A preflight request that CORS does not allow is an OPTIONS as any other.
            (web.HTTPMethodNotAllowed,),
        ),
        Problem(
            "not-acceptable",
            406,
            "Not acceptable",
            "The resource has none of the media types that the header Accept admits.",
            (NotAcceptable,),
        ),
        Problem(
            "request-timeout",
            408,
            "Request timeout",
            "The request did not arrive in time.",
            (RequestTimeout,),
        ),
        Problem(
            "email-taken",
            409,
            "Email address taken",
            "A user with this mailbox is registered already, perhaps in another spelling.",
            (EmailAlreadyRegistered,),
        ),
        Problem(
            "body-too-large",
            413,
            "Body too large",
            "The body of the request is larger than the service takes.",
            (BodyTooLarge, web.HTTPRequestEntityTooLarge),
        ),
        Problem(
            "target-too-long",
            414,
            "Target too long",
            "The path and the query of the request are longer than the service takes.",
            (TargetTooLong,),
        ),
        Problem(
            "unsupported-media-type",
            415,
            "Unsupported media type",
            "The body has to be application/json, in UTF-8.",
            (UnsupportedMediaType, web.HTTPUnsupportedMediaType),
            {"Accept": "application/json"},
        ),
        Problem(
            "validation-failed",
            422,
            "Validation failed",
            "Fields of the body or parameters of the query break rules; errors names each of them.",
            (ValidationFailed, InvalidRequest),
        ),
        Problem(
            "idempotency-key-reused",
            422,
            "Idempotency key reused",
            "The Idempotency-Key was used before, for another registration.",
            (IdempotencyKeyReused,),
        ),
        Problem(
            "rate-limited",
            429,
            "Rate limited",
            "Too many requests from this address; Retry-After says when to come again.",
            (RateLimited,),
            {"Retry-After": "60", "RateLimit-Policy": '"register";q=60;w=60', "RateLimit": '"register";r=0;t=60'},
        ),
        Problem(
            "head-too-large",
            431,
            "Head too large",
            "The header fields of the request are larger, or more, than the service takes.",
            (HeadTooLarge,),
        ),
        Problem(
            "internal-error",
            500,
            "Internal error",
            "The service failed in a way that it did not foresee. The request id helps to find out why.",
            (Exception,),
        ),
        Problem(
            "transfer-coding-not-implemented",
            501,
            "Transfer coding not implemented",
            "The only transfer coding of a body that the service knows is chunked.",
            (TransferCodingNotImplemented,),
        ),
        Problem(
            "overloaded",
            503,
            "Overloaded",
            "The service has no room for the request just now, or is being stopped; it may be repeated.",
            (Stopping, QueueFull, TooManyConnections, TooManyWaiting),
            {"Retry-After": "5"},
        ),
        Problem(
            "storage-unavailable",
            503,
            "Storage unavailable",
            "The store does not answer just now. Whether a registration was stored is not known; it may be repeated.",
            (StorageUnavailable,),
            {"Retry-After": "5"},
        ),
        Problem(
            "http-version-not-supported",
            505,
            "HTTP version not supported",
            "The service supports HTTP/1.0 and HTTP/1.1.",
            (HttpVersionNotSupported,),
        ),
    )
}

_PROBLEM_OF = {error: problem for problem in PROBLEMS.values() for error in problem.errors}


def members(problem: Problem, detail: str, request_id: str) -> dict[str, Any]:
    """The members that every problem document has (RFC 9457, section 3.1), and the code."""
    return {
        "type": f"/problems/{problem.code}",
        "title": problem.title,
        "status": problem.status,
        "detail": detail,
        "instance": f"/requests/{quote(request_id, safe='')}",
        "code": problem.code,
    }


def problem_response(error: Exception, request_id: str) -> web.Response:
    """The answer to any failure. Those of the service are logged; what was not foreseen tells the client nothing."""
    # The row of its own class, or that of the nearest base that has one.
    problem = next(_PROBLEM_OF[kind] for kind in type(error).__mro__ if kind in _PROBLEM_OF)
    if isinstance(error, StorageUnavailable):
        log.error("the request failed: %s: %s", problem.code, error, extra={"request_id": request_id})
    elif problem.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("the request failed: %s", problem.code, extra={"request_id": request_id}, exc_info=error)
    reason = str(error) if isinstance(error, RequestRefused) else ""
    document = members(problem, reason or problem.description, request_id)
    if isinstance(error, InvalidRequest | ValidationFailed):
        document["errors"] = [asdict(violation) for violation in error.violations]
    response = web.Response(body=orjson.dumps(document), status=problem.status, content_type=MEDIA_TYPE)
    response.headers.update(problem.headers or {})
    if isinstance(error, RequestRefused):
        response.headers.update(error.headers)
    if isinstance(error, QueueFull):
        response.headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, web.HTTPMethodNotAllowed):
        response.headers["Allow"] = error.headers["Allow"]
    return response
