"""The OpenAPI document is one that clients can be made from, and knows each code there is."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from django.core.management import call_command
from rest_framework import exceptions

from posts.codes import CODES
from posts.documented import documented
from tests.api import contract
from tests.api.server import Current

ROOT = Path(__file__).resolve().parents[2]
APPS = ("eventbus", "posts", "feeds", "feedsite")
# Raised by Django REST framework, of which these are all that can occur here.
OF_THE_FRAMEWORK = {
    exceptions.NotAuthenticated.default_code,
    exceptions.MethodNotAllowed.default_code,
    exceptions.UnsupportedMediaType.default_code,
    exceptions.Throttled.default_code,
}
# What may be called with a code, and which of its arguments that is.
TAKING_CODES = {
    "error_body": 0,
    "_unavailable": 0,
    "refusal": 1,
    "BodyRefused": 1,
    "_refusal": 2,
    "_try_later": 0,
    "DataRefused": 0,
    "Refusal": 0,
}
CODE_ATTRIBUTES = ("code", "default_code")
METHOD_NAME = re.compile(r"[a-z]+(_[a-z]+)+")


def operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in contract.document()["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def schema_of(answer: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the name and the schema of an answer's body."""
    name = answer["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    return name, contract.document()["components"]["schemas"][name]


def errors_of(operation: dict[str, Any]) -> dict[str, Any]:
    """Return the answers that are errors, by their statuses."""
    return {status: told for status, told in operation["responses"].items() if int(status) >= 400}


def codes_of(operation: dict[str, Any]) -> set[str]:
    """Return the codes of an operation, all of whose errors have one schema."""
    ((_name, schema),) = {
        name: (name, schema) for name, schema in map(schema_of, errors_of(operation).values())
    }.values()
    error, own = schema["allOf"]
    assert error == {"$ref": "#/components/schemas/Error"}
    return set(own["properties"]["code"]["enum"])


def codes_in_the_source() -> set[str]:
    found = set()
    for file in (file for app in APPS for file in (ROOT / app).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            found |= set(_codes_of(node))
    return found


def _codes_of(node: ast.AST) -> Iterator[str]:
    given: list[ast.expr] = []
    if isinstance(node, ast.Call):
        given += [keyword.value for keyword in node.keywords if keyword.arg == "code"]
        name = getattr(node.func, "id", getattr(node.func, "attr", None))
        if name in TAKING_CODES:
            given += node.args[TAKING_CODES[name] :][:1]
    if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") in CODE_ATTRIBUTES:
        given.append(node.value)
    for value in given:
        if isinstance(value, ast.Constant) and isinstance(value.value, str):
            yield value.value


def test_each_code_of_the_source_is_in_the_table_and_none_besides() -> None:
    # Of this class each one raised has a code of its own.
    assert codes_in_the_source() - {"unprocessable"} | OF_THE_FRAMEWORK == set(CODES)


def test_each_code_is_documented_at_some_operation() -> None:
    nowhere = {"method_not_allowed", "forbidden"}  # what no documented method answers
    documented_codes = {code for _name, operation in operations() for code in codes_of(operation)}
    assert documented_codes == CODES.keys() - nowhere


def test_an_operation_answers_the_statuses_of_its_codes_and_tells_their_meaning() -> None:
    for name, operation in operations():
        errors = errors_of(operation)
        assert {int(status) for status in errors} == {
            CODES[code].status for code in codes_of(operation)
        }, name
        for code in codes_of(operation):
            told = errors[str(CODES[code].status)]["description"]
            assert f"`{code}`: {CODES[code].meaning}" in told


def test_a_view_cannot_declare_a_code_that_is_not_in_the_table() -> None:
    with pytest.raises(ValueError, match=r"read_it: not in posts/codes.py: no_such_code"):
        documented("read_it", {200: None}, errors=["no_such_code"])


def test_each_operation_has_a_name_of_its_own_that_makes_a_good_method() -> None:
    names = [operation["operationId"] for _name, operation in operations()]
    assert [name for name in names if not METHOD_NAME.fullmatch(name)] == []
    assert len(set(names)) == len(names)
    assert {"create_post", "read_feed", "follow_user", "stream_feed"} <= set(names)


def test_schemas_have_names_without_suffixes_and_errors_have_one() -> None:
    schemas = contract.document()["components"]["schemas"]
    suffixes = ("Schema", "Serializer", "Enum", "Request")
    assert [name for name in schemas if name.endswith(suffixes)] == []
    assert [name for name in schemas if name.startswith("Patched")] == []
    assert {"Error", "Post", "PostList", "Event"} <= schemas.keys()


def test_a_body_must_be_there_though_each_of_its_fields_may_be_left_out() -> None:
    bodies = {name: told["requestBody"] for name, told in operations() if "requestBody" in told}
    assert {"POST /posts", "PATCH /posts/{post_id}"} <= bodies.keys()
    assert [name for name, body in bodies.items() if not body.get("required")] == []


def test_the_codes_that_one_of_many_follows_may_be_refused_with_are_told() -> None:
    code = contract.document()["components"]["schemas"]["FollowEntry"]["properties"]["code"]
    assert set(code["enum"]) == {"cannot_follow_oneself", "follow_blocked"}
    assert set(code["enum"]) <= CODES.keys()


def test_each_write_tells_its_headers_and_its_event() -> None:
    for name, operation in operations():
        if answer := operation["responses"].get("202"):
            headers = answer["headers"]
            assert {"RateLimit", "RateLimit-Policy"} <= headers.keys(), name
            _body_name, body = schema_of(answer)
            assert {"event_id", "results"} & set(body["required"]), name
            # Of many events each has an id, and there is no one address to name.
            of_one_event = "event_id" in body["required"]
            assert headers.get("Location", {}).get("required", False) == of_one_event, name
            assert ("Location" in headers) == of_one_event, name
            assert "Retry-After" in operation["responses"]["429"]["headers"], name


def test_reads_that_are_limited_tell_their_headers_too() -> None:
    limited = {
        operation["operationId"]
        for _name, operation in operations()
        if {"RateLimit", "RateLimit-Policy"}
        <= operation["responses"].get("200", {"headers": {}})["headers"].keys()
        and "Retry-After" in operation["responses"].get("429", {"headers": {}})["headers"]
    }
    assert limited == {"read_post", "read_posts"}


def test_the_bounds_of_limit_are_told() -> None:
    limits = [
        parameter["schema"]
        for _name, operation in operations()
        for parameter in operation.get("parameters", [])
        if parameter["name"] == "limit"
    ]
    assert limits == [{"type": "integer", "minimum": 1, "maximum": 100}] * len(limits)
    assert limits


def test_the_document_is_valid() -> None:
    call_command("spectacular", "--validate", "--fail-on-warn", "--file", "/dev/null")


@pytest.mark.django_db(transaction=True)
@pytest.mark.usefixtures("current_api")
def test_the_document_comes_as_json_or_yaml_as_asked() -> None:
    client = Current.api.anonymous()
    as_json = client.get("/schema/", Accept="application/json")
    by_format = client.get("/schema/?format=json")
    as_yaml = client.get("/schema/")
    for_a_browser = client.get("/schema/", Accept="text/html")
    assert as_json.headers["Content-Type"].startswith("application/")
    assert "json" in as_json.headers["Content-Type"]
    assert as_json.json() == by_format.json() == yaml.safe_load(as_yaml.text)
    assert as_json.json()["openapi"] == "3.1.0"
    assert for_a_browser.text == as_yaml.text
    assert client.get("/schema/?format=xml").status_code == 404
