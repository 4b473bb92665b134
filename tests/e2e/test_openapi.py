"""The OpenAPI document is valid and complete, and its examples fit its schemas."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openapi_schema_validator import OAS30Validator, oas30_format_checker
from openapi_spec_validator import OpenAPIV30SpecValidator

from tests.e2e.api import assert_common_headers
from usersvc.domain.email_address import EmailAddress
from usersvc.domain.password import Password
from usersvc.domain.user import Age
from usersvc.web.app import ROUTES

Json = dict[str, Any]


@pytest.fixture(scope="module")
def document(client: httpx.Client) -> Json:
    response = client.get("/openapi.json")
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"
    assert_common_headers(response)
    loaded: Json = response.json()
    return loaded


def operations(document: Json) -> Iterator[tuple[str, Json]]:
    for path, item in document["paths"].items():
        for method, operation in item.items():
            yield f"{method.upper()} {path}", operation


def examples(holder: Json) -> list[Any]:
    """The examples of a media type, a parameter or a header."""
    several = [example["value"] for example in holder.get("examples", {}).values()]
    return [*several, holder["example"]] if "example" in holder else several


def resolved(document: Json, holder: Json) -> Json:
    if "$ref" not in holder:
        return holder
    found = document
    for name in holder["$ref"].removeprefix("#/").split("/"):
        found = found[name]
    return found


def assert_fits(document: Json, schema: Json, example: Any) -> None:
    validator = OAS30Validator(schema | {"components": document["components"]}, format_checker=oas30_format_checker)
    assert not [f"{error.json_path}: {error.message}" for error in validator.iter_errors(example)]


def test_document_is_valid(document: Json) -> None:
    assert document["openapi"].startswith("3.0.")
    assert not [*OpenAPIV30SpecValidator(document).iter_errors()]


def test_every_operation_has_an_id_a_summary_and_tags(document: Json) -> None:
    assert all(operation["summary"] and operation["tags"] for _, operation in operations(document))
    handlers = [route.handler.__name__ for route in ROUTES]
    assert sorted(handlers) == sorted([*(each["operationId"] for _, each in operations(document)), "docs_asset"])


def test_every_response_has_a_schema_and_its_examples_fit(document: Json) -> None:
    for name, operation in operations(document):
        assert any(status.startswith("2") for status in operation["responses"]), name
        for status, response in operation["responses"].items():
            assert response["description"], (name, status)
            for media_type, content in response["content"].items():
                assert (media_type == "application/problem+json") == (status >= "400"), (name, status)
                assert content["schema"], (name, status)
                assert examples(content) or status < "400", (name, status)
                for example in examples(content):
                    assert_fits(document, content["schema"], example)
                    if media_type == "application/problem+json":
                        assert str(example["status"]) == status


def test_list_has_both_media_types(document: Json) -> None:
    content = document["paths"]["/users"]["get"]["responses"]["200"]["content"]
    assert set(content) == {"application/json", "application/x-ndjson"}


def test_every_parameter_and_header_has_a_schema_that_its_examples_fit(document: Json) -> None:
    for name, operation in operations(document):
        headers = [header for response in operation["responses"].values() for header in response["headers"].values()]
        for reference in [*operation["parameters"], *headers]:
            declared = resolved(document, reference)
            assert declared["description"], name
            for example in examples(declared):
                assert_fits(document, declared["schema"], example)


def test_every_member_of_the_body_has_an_example_that_fits_it(client: httpx.Client, document: Json) -> None:
    for schema in document["components"]["schemas"].values():
        for member in schema["properties"].values():
            for example in examples(member):
                assert_fits(document, member, example)
    registration = document["components"]["schemas"]["Registration"]
    example = {name: member["example"] for name, member in registration["properties"].items()}
    assert_fits(document, registration, example)
    assert client.post("/register", json=example).status_code in {201, 409}


def test_constraints_are_those_of_the_domain(document: Json) -> None:
    registration = document["components"]["schemas"]["Registration"]
    email, password, age = (registration["properties"][name] for name in ("email", "password", "age"))

    assert set(registration["required"]) == set(registration["properties"]) == {"email", "password", "age"}
    assert registration["additionalProperties"] is False
    assert (email["type"], email["format"], email["maxLength"]) == ("string", "email", EmailAddress.MAX_OCTETS)
    assert (password["type"], password["minLength"], password["maxLength"]) == (
        "string",
        Password.MIN_LENGTH,
        Password.MAX_LENGTH,
    )
    assert password["writeOnly"] is True
    assert (age["type"], age["minimum"], age["maximum"]) == ("integer", Age.MIN, Age.MAX)


def test_no_response_contains_a_password(document: Json) -> None:
    for name, operation in operations(document):
        for response in operation["responses"].values():
            for content in response["content"].values():
                assert "password" not in resolved(document, content["schema"]).get("properties", {}), name
    assert set(document["components"]["schemas"]["User"]["properties"]) == {"id", "email", "age", "registered_at"}
