"""The table of all problems (RFC 9457): error type -> status and code."""

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
    """A refusal by the web side; its text is sent to the client and contains nothing secret."""

    def __init__(self, text: str = "", headers: Mapping[str, str] | None = None) -> None:
        """Make a refusal.

        Args:
            text: for the client.
            headers: of the response, in place of those in the table.
        """
        super().__init__(text)
        self.headers = headers or {}


class MalformedJson(RequestRefused):
    """The body is not strict JSON (RFC 8259, RFC 7493)."""


class Unauthorized(RequestRefused):
    """The request is not authorized; the response does not reveal whether the resource exists."""


class RateLimited(RequestRefused):
    """The client has sent too many requests."""

    def __init__(self, headers: Mapping[str, str]) -> None:
        """Make a refusal.

        Args:
            headers: ``Retry-After`` and the RateLimit headers.
        """
        super().__init__(f"Too many requests from this address; retry in {headers['Retry-After']} s.", headers)


class UserNotFound(RequestRefused):
    """There is no user with this id."""


class NotAcceptable(RequestRefused):
    """The client accepts none of the media types of the resource."""


class RequestTimeout(RequestRefused):
    """The request did not arrive in time."""


class MalformedHttp(RequestRefused):
    """The request is not valid HTTP (RFC 9112)."""


class TargetTooLong(RequestRefused):
    """The request target is too long."""


class HeadTooLarge(RequestRefused):
    """The request head is too large, or has too many fields."""


class TransferCodingNotImplemented(RequestRefused):
    """The body is in a transfer coding other than chunked (RFC 9112, section 6.1)."""


class HttpVersionNotSupported(RequestRefused):
    """The request is in a version of HTTP other than 1.0 and 1.1 (RFC 9110, section 15.6.6)."""


class TooManyConnections(RequestRefused):
    """The limit of connections is reached."""


class TooManyWaiting(RequestRefused):
    """The limit of pipelined requests is reached."""


class Stopping(RequestRefused):
    """The service is stopping and does not complete the request."""


class BodyTooLarge(RequestRefused):
    """The body is too large."""


class UnsupportedMediaType(RequestRefused):
    """The media type or the coding of the body is not supported."""


class InvalidRequest(RequestRefused):
    """The body or the query is invalid; ``violations`` has every reason."""

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__()
        self.violations = tuple(violations)


@dataclass(frozen=True, slots=True)
class Problem:
    """A kind of problem, as ``GET /problems/{code}`` shows it."""

    code: str
    status: int
    title: str
    description: str
    errors: tuple[type[Exception], ...] = ()
    """The exceptions that lead to it, with their subclasses."""
    headers: Mapping[str, str] | None = None


PROBLEMS: Mapping[str, Problem] = {
    problem.code: problem
    for problem in (
        Problem(
            "malformed-json",
            400,
            "Malformed JSON",
            "The body is not strict JSON: syntax error, not UTF-8, duplicate member, NaN or Infinity, or too deep.",
            (MalformedJson, web.HTTPBadRequest, web.RequestPayloadError),
        ),
        Problem(
            "malformed-http",
            400,
            "Malformed HTTP",
            "The request is not valid HTTP (RFC 9112).",
            (MalformedHttp,),
        ),
        Problem(
            "unauthorized",
            401,
            "Unauthorized",
            "The resource requires the admin token, as Authorization: Bearer.",
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
            "The resource does not support this method; the Allow header lists the supported ones.",
            # Also for a preflight request that CORS does not allow.
            (web.HTTPMethodNotAllowed,),
        ),
        Problem(
            "not-acceptable",
            406,
            "Not acceptable",
            "The resource has none of the media types in the Accept header.",
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
            "A user with this mailbox is already registered, possibly in another spelling.",
            (EmailAlreadyRegistered,),
        ),
        Problem(
            "body-too-large",
            413,
            "Body too large",
            "The body of the request is larger than the service accepts.",
            (BodyTooLarge, web.HTTPRequestEntityTooLarge),
        ),
        Problem(
            "target-too-long",
            414,
            "Target too long",
            "The path and the query of the request are longer than the service accepts.",
            (TargetTooLong,),
        ),
        Problem(
            "unsupported-media-type",
            415,
            "Unsupported media type",
            "The body must be application/json, in UTF-8.",
            (UnsupportedMediaType, web.HTTPUnsupportedMediaType),
            {"Accept": "application/json"},
        ),
        Problem(
            "validation-failed",
            422,
            "Validation failed",
            "Fields of the body or parameters of the query are invalid; errors lists all of them.",
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
            "Too many requests from this address; Retry-After says when to retry.",
            (RateLimited,),
            {"Retry-After": "60", "RateLimit-Policy": '"register";q=60;w=60', "RateLimit": '"register";r=0;t=60'},
        ),
        Problem(
            "head-too-large",
            431,
            "Head too large",
            "The header fields of the request are larger, or more, than the service accepts.",
            (HeadTooLarge,),
        ),
        Problem(
            "internal-error",
            500,
            "Internal error",
            "The service failed unexpectedly. The request id identifies the failure in the log.",
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
            "The service is overloaded or stopping; retry the request later.",
            (Stopping, QueueFull, TooManyConnections, TooManyWaiting),
            {"Retry-After": "5"},
        ),
        Problem(
            "storage-unavailable",
            503,
            "Storage unavailable",
            "The storage does not respond. A registration may or may not have been stored; it can be retried.",
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
    # The row of the class, or of its nearest base class that has one.
    problem = next(_PROBLEM_OF[kind] for kind in type(error).__mro__ if kind in _PROBLEM_OF)
    if isinstance(error, StorageUnavailable):
        log.error("request failed: %s: %s", problem.code, error, extra={"request_id": request_id})
    elif problem.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        log.error("request failed: %s", problem.code, extra={"request_id": request_id}, exc_info=error)
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
