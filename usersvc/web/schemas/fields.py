"""What all schemas are made of: fields with stable error codes, queries, and the documents of responses.

An error message of these fields is a list of (code, text) pairs.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from marshmallow import Schema, ValidationError, fields, missing

from usersvc.domain.errors import ValidationFailed, Violation


def flaw(code: str, message: str) -> Any:
    """An error message with its code."""
    # Typed Any since marshmallow carries any object as a message, but declares only text.
    return [(code, message)]


def violations_in(messages: Any, field: str = "body") -> Iterable[Violation]:
    """Flatten the messages that marshmallow collects by field."""
    if isinstance(messages, Mapping):
        for name, inner in messages.items():
            # Names that a client sent are truncated, and without lone surrogates.
            shown = str(name)[:64].encode("utf-8", "backslashreplace").decode()
            for violation in violations_in(inner, field if name == "_schema" else shown):
                # marshmallow uses this name for errors of the whole object, but a member may have it too.
                unknown = name == "_schema" and violation.code == "unknown-field"
                yield replace(violation, field=name) if unknown else violation
    elif isinstance(messages, tuple):
        yield Violation(field, *messages)
    else:
        for message in messages:
            yield from violations_in(message, field)


_COMMON = {"required": flaw("required", "Is missing."), "null": flaw("wrong-type", "Must not be null.")}


class Text(fields.String):
    """A JSON string."""

    default_error_messages = {**_COMMON, "invalid": flaw("wrong-type", "Must be a string.")}


class WholeNumber(fields.Integer):
    """A JSON integer: not a boolean, not a string, not a number with a fraction or an exponent."""

    default_error_messages = {**_COMMON, "invalid": flaw("wrong-type", "Must be an integer.")}

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> int:
        if type(value) is not int:
            raise self.make_error("invalid")
        return value


class Parameter(fields.Field[Any]):
    """A parameter of a query, or a header; it must not be repeated.

    Args:
        read: makes a value of the text; raises ``ValidationFailed``, or ``ValueError`` for the flaw ``broken``.
        broken: the flaw.
        data_key: as that of a field.
        load_default: as that of a field.
        metadata: for the OpenAPI document.
    """

    def __init__(
        self,
        read: Callable[[str], Any],
        broken: Any = None,
        *,
        data_key: str | None = None,
        load_default: Any = missing,
        **metadata: Any,
    ) -> None:
        super().__init__(data_key=data_key, load_default=load_default, metadata={"type": "string", **metadata})
        self._read, self._broken = read, broken

    def _deserialize(self, value: Any, attr: str | None, data: Any, **_: Any) -> Any:
        if isinstance(value, list):
            raise ValidationError(flaw("repeated", "Must not be repeated."))
        try:
            return self._read(value)
        except ValidationFailed as refused:
            raise ValidationError([(broken.code, broken.message) for broken in refused.violations]) from None
        except ValueError:
            raise ValidationError(self._broken) from None


class QuerySchema(Schema):
    """A query string. An unknown parameter is an error, as it may be a misspelt one."""

    error_messages = {"unknown": flaw("unknown-field", "Is not a parameter of this resource.")}


def document(name: str, /, **members: fields.Field[Any] | type[Schema]) -> type[Schema]:
    """The schema of an object in responses, whose name is for the OpenAPI document."""
    nested = {
        key: fields.Nested(member, required=True) if isinstance(member, type) else member
        for key, member in members.items()
    }
    return Schema.from_dict(nested, name=name)


def member(kind: type[fields.Field[Any]], example: Any, **metadata: Any) -> fields.Field[Any]:
    """A member that is always present."""
    return kind(required=True, metadata={"example": example, **metadata})


def link(example: str, **metadata: Any) -> fields.Field[Any]:
    """A member that is a URI reference."""
    return member(fields.String, example, format="uri-reference", **metadata)
