"""Holds what the API answers against its OpenAPI document: status, code, body and headers."""

import re
from functools import cache
from threading import Lock
from typing import Any

import httpx
from drf_spectacular.generators import SchemaGenerator
from jsonschema import Draft202012Validator

from posts.codes import CODES

OWN_HEADERS = {
    "Location",
    "RateLimit",
    "RateLimit-Policy",
    "Retry-After",
    "WWW-Authenticate",
    "X-Cache",
    "X-Request-ID",
}


_making = Lock()


def document() -> dict[str, Any]:
    """Return the OpenAPI document."""
    # Its generator fails when several threads, as clients of a test are, make it at a time.
    with _making:
        return _document()


@cache
def _document() -> dict[str, Any]:
    found: dict[str, Any] = SchemaGenerator().get_schema(request=None, public=True)  # type: ignore[no-untyped-call]
    return found


def check(answer: httpx.Response) -> None:
    """Fail if the document does not foresee this answer."""
    request = answer.request
    path = _path_of(request.url.path)
    if path is None or request.method == "OPTIONS" or answer.is_redirect:
        return
    asked = f"{request.method} {path}"
    method = "get" if request.method == "HEAD" else request.method.lower()
    if method not in document()["paths"][path]:
        assert answer.status_code == 405, f"{asked} is not in the OpenAPI document"
        return
    status = str(answer.status_code)
    answers = document()["paths"][path][method]["responses"]
    told = f"{asked} answered {status} {answer.text[:200]}"
    assert status in answers, f"{told}, a status that is not documented"
    _check_headers(answer, answers[status], told)
    if request.method != "HEAD":
        _check_body(answer, path, method, told)


@cache
def _paths() -> list[tuple[re.Pattern[str], str]]:
    return [(re.compile(re.sub(r"\{\w+\}", "[^/]+", path)), path) for path in document()["paths"]]


def _path_of(asked: str) -> str | None:
    """Return the path of the document that was asked for, those without an id first."""
    found = [path for pattern, path in _paths() if pattern.fullmatch(asked)]
    return min(found, key=lambda path: path.count("{"), default=None)


def _check_headers(answer: httpx.Response, documented: dict[str, Any], told: str) -> None:
    sent = {name for name in OWN_HEADERS if name in answer.headers}
    assert sent <= documented["headers"].keys(), f"{told} with a header that is not documented"


def _check_body(answer: httpx.Response, path: str, method: str, told: str) -> None:
    content = document()["paths"][path][method]["responses"][str(answer.status_code)]["content"]
    media_type = answer.headers["Content-Type"].partition(";")[0]
    assert media_type in content, f"{told} as {media_type}"
    if media_type == "application/json":
        problems = list(_validator(path, method, answer.status_code).iter_errors(answer.json()))
        assert not problems, f"{told}: {problems[0].message}. Is the code in `errors` of the view?"
        if answer.status_code >= 400:
            assert CODES[answer.json()["code"]].status == answer.status_code, told


@cache
def _validator(path: str, method: str, status: int) -> Draft202012Validator:
    place = ["paths", path, method, "responses", str(status), "content", "application/json"]
    pointer = "/".join(key.replace("~", "~0").replace("/", "~1") for key in [*place, "schema"])
    return Draft202012Validator({**document(), "$ref": f"#/{pointer}"})
