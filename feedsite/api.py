"""What all API views share: JSON in, JSON out, and errors as `{"code": …, "detail": …}`."""

from collections.abc import Callable, Iterable, Mapping
from functools import wraps
from typing import IO, Any

import orjson
import structlog
from django.conf import settings
from django.db import Error as DatabaseFailure
from django.http import HttpRequest, HttpResponse
from django.views.decorators.csrf import csrf_exempt
from rest_framework import exceptions
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.parsers import BaseParser
from rest_framework.renderers import BaseRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from eventbus import retry
from eventbus.exceptions import IdempotencyKeyReused, IdsUnavailable, PublishFailed
from feedsite.keys import KeysUnavailable
from posts import data, rates
from posts.errors import PayloadTooLarge, Unprocessable, UnsupportedEncoding

RETRY_AFTER_SECONDS = "1"
READING = ("GET", "HEAD")

log = structlog.get_logger(__name__)


class JSONParser(BaseParser):
    """Strict JSON (RFC 8259, no NaN, no lone surrogates) of at most `DATA_UPLOAD_MAX_MEMORY_SIZE`
    bytes.
    """

    media_type = "application/json"

    def parse(
        self,
        stream: IO[Any],
        media_type: str | None = None,
        parser_context: Mapping[str, Any] | None = None,
    ) -> Any:
        limit = settings.DATA_UPLOAD_MAX_MEMORY_SIZE
        body = stream.read(limit + 1)
        if len(body) > limit:
            raise PayloadTooLarge(f"The request body is larger than {limit} bytes.")
        return parse_json(body)


def parse_json(body: bytes) -> Any:
    """Return what the JSON in `body` says. Raises `ParseError`.

    A body with data of a post is read once more, to the letter; raises `Unprocessable`.
    """
    try:
        found = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise exceptions.ParseError(
            f"The body is not JSON: {error}", code="malformed_json"
        ) from error
    if isinstance(found, dict) and "data" in found:
        return _read_exactly(body, found)
    return found


def _read_exactly(body: bytes, parsed: object) -> Any:
    try:
        return data.read_exactly(body, parsed)
    except data.DataRefused as error:
        raise Unprocessable(str(error), code=error.code) from error


def media_type_of(content_type: str | None) -> str:
    """Return the media type in a Content-Type header, without its parameters."""
    return (content_type or "").partition(";")[0].strip().lower()


class JSONRenderer(BaseRenderer):
    media_type = "application/json"
    format = "json"
    charset = None
    render_style = "binary"

    def render(
        self,
        data: Any,
        accepted_media_type: str | None = None,
        renderer_context: Mapping[str, Any] | None = None,
    ) -> bytes:
        return b"" if data is None else orjson.dumps(data)


class AlwaysJSON(BaseContentNegotiation):
    """This API speaks JSON whatever a client says it would rather have."""

    def select_parser(self, request: Request, parsers: Iterable[Any]) -> Any:
        encoding = request.META.get("HTTP_CONTENT_ENCODING", "identity")
        if encoding.strip().lower() != "identity":
            raise UnsupportedEncoding(f"A body with Content-Encoding {encoding!r} is not read.")
        media_type = media_type_of(request.content_type)
        return next((parser for parser in parsers if parser.media_type == media_type), None)

    def select_renderer(
        self, request: Request, renderers: Iterable[Any], format_suffix: str | None = None
    ) -> tuple[Any, str]:
        renderer = next(iter(renderers))
        return renderer, renderer.media_type


def exception_handler(error: Exception, context: Mapping[str, Any]) -> Response | None:
    """Return the error response for what a view raised; None leaves it to Django (a 500)."""
    response = _response_to(error)
    if response is not None and isinstance(error, exceptions.Throttled):
        for name, value in rates.headers_of(context["request"]).items():
            response[name] = value
    return response


def error_answer(error: Exception) -> HttpResponse:
    """Return what `exception_handler` does for this error, as bytes, for where there is no view."""
    response = _response_to(error)
    if response is None:
        raise error
    headers = dict(response.items())
    return HttpResponse(orjson.dumps(response.data), status=response.status_code, headers=headers)


def _response_to(error: Exception) -> Response | None:
    if isinstance(error, exceptions.APIException):
        return _api_error(error)
    if isinstance(error, IdempotencyKeyReused):
        return _api_error(Unprocessable(str(error), code="idempotency_key_reused"))
    if isinstance(error, PublishFailed):
        log.warning("write_not_accepted", error=str(error))
        return _unavailable(error.code, f"{error} Nothing was promised: try again.")
    if isinstance(error, IdsUnavailable):
        log.warning("write_not_accepted", error=str(error))
        return _unavailable("database_unavailable", f"{error} Nothing was promised: try again.")
    if isinstance(error, KeysUnavailable):
        return _unavailable("keys_unavailable", str(error))
    if isinstance(error, DatabaseFailure):
        return _database_error(error)
    return None


def error_body(code: str, detail: str) -> dict[str, str]:
    return {"code": code, "detail": detail}


def only_reading(
    view: Callable[[HttpRequest], HttpResponse],
) -> Callable[[HttpRequest], HttpResponse]:
    """Have a view that is none of REST framework's answer GET and HEAD alone, and others as those
    do.
    """

    # Nothing that could be forged is done, and else a POST would be refused for its missing token
    # of a form.
    @csrf_exempt
    @wraps(view)
    def answer(request: HttpRequest) -> HttpResponse:
        if request.method in READING:
            return view(request)
        refused = error_answer(exceptions.MethodNotAllowed(str(request.method)))
        refused["Allow"] = ", ".join(READING)
        refused["Content-Type"] = JSONRenderer.media_type
        return refused

    return answer


def not_found(_request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer paths no view has."""
    return HttpResponse(
        orjson.dumps(error_body("not_found", "There is nothing here.")),
        content_type="application/json",
        status=404,
    )


def not_allowed(_request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer what Django's middleware refuses to let through to a view."""
    return HttpResponse(
        orjson.dumps(error_body("forbidden", "This is not allowed here.")),
        content_type="application/json",
        status=403,
    )


def bad_request(_request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer what Django itself refuses, such as a host name that is not allowed."""
    return HttpResponse(
        orjson.dumps(error_body("bad_request", "The request cannot be answered as it is.")),
        content_type="application/json",
        status=400,
    )


def server_error(_request: HttpRequest) -> HttpResponse:
    """Answer what no view foresaw; the traceback is in the log."""
    return HttpResponse(
        orjson.dumps(error_body("internal_error", "Something went wrong here.")),
        content_type="application/json",
        status=500,
    )


def _api_error(error: exceptions.APIException) -> Response:
    codes = error.get_codes()
    response = Response(error_body(str(codes), str(error.detail)), status=error.status_code)
    if header := getattr(error, "auth_header", None):
        response["WWW-Authenticate"] = header
    if wait := getattr(error, "wait", None):
        response["Retry-After"] = str(int(wait) + 1)
    return response


def _database_error(error: DatabaseFailure) -> Response | None:
    if retry.is_unreachable(error):
        log.error("database_unavailable", error=str(error))
        return _unavailable("database_unavailable", "The database cannot be reached. Try again.")
    if retry.is_transient(error):
        log.error("database_busy", error=str(error))
        return _unavailable("database_busy", "The database could not answer this time. Try again.")
    return None


def _unavailable(code: str, detail: str) -> Response:
    return Response(
        error_body(code, detail), status=503, headers={"Retry-After": RETRY_AFTER_SECONDS}
    )
