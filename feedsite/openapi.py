"""The OpenAPI document: what the views say of themselves (`posts.documented`), and what is the same
for all of them.
"""

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from drf_spectacular.extensions import OpenApiAuthenticationExtension
from drf_spectacular.openapi import AutoSchema
from drf_spectacular.plumbing import ResolvedComponent
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse
from rest_framework.serializers import Serializer

from posts.codes import CODES
from posts.documented import Documentation

ERROR = {
    "type": "object",
    "description": "Why a request was refused. `code` is for programs and stays; `detail` is a "
    "sentence for people, which may change.",
    "properties": {"code": {"type": "string"}, "detail": {"type": "string"}},
    "required": ["code", "detail"],
}

OF_ALL = [
    "bad_request",
    "not_authenticated",
    "invalid_token",
    "token_expired",
    "internal_error",
    "database_busy",
    "database_unavailable",
    "keys_unavailable",
    "overloaded",
]
OF_IDS_IN_PATHS = ["not_found"]
OF_METHODS_WITH_BODIES = ["incomplete_body", "request_timeout", "payload_too_large"]
OF_BODIES = ["malformed_json", "unsupported_encoding", "unsupported_media_type", "not_an_object"]
OF_WRITES = [
    "invalid_idempotency_key",
    "idempotency_key_reused",
    "throttled",
    "kafka_unavailable",
    "topics_unchecked",
]


def _header(
    name: str, kind: Any, statuses: list[int] | bool, description: str, *, required: bool = False
) -> OpenApiParameter:
    return OpenApiParameter(
        name,
        kind,
        OpenApiParameter.HEADER,
        response=statuses,
        description=description,
        required=required,
    )


IDEMPOTENCY_KEY = OpenApiParameter(
    "Idempotency-Key",
    {"type": "string", "pattern": "^[\\x20-\\x7e]{1,255}$"},
    OpenApiParameter.HEADER,
    description="the same key and body: the same answer, done once",
)
HEADERS_OF_ALL = [
    _header("X-Request-ID", str, True, "names the request in the log; that of the request, if any"),
    _header("WWW-Authenticate", str, [401], "`Bearer`"),
    _header("Retry-After", int, [429, 503], "in how many seconds to try again"),
]
LOCATION = _header("Location", str, [202], "where to ask what became of the event", required=True)
OF_RATES = [200, 202, 429]
HEADERS_OF_RATES = [
    _header("RateLimit-Policy", str, OF_RATES, "how many in how many seconds, if limited"),
    _header("RateLimit", str, OF_RATES, "how many are left, and for how long"),
]


class Schema(AutoSchema):
    """One operation in the document."""

    @property
    def documentation(self) -> Documentation:
        found: Documentation = getattr(self.view, self.method.lower()).documentation
        return found

    def get_operation_id(self) -> str:
        return self.documentation.operation_id

    def get_request_serializer(self) -> Any:
        return self.documentation.body

    def get_response_serializers(self) -> Any:
        return {**self.documentation.answers, **self._errors()}

    def get_override_parameters(self) -> list[Any]:
        own: list[Any] = list(self.documentation.parameters)
        if self.documentation.is_write:
            own.append(IDEMPOTENCY_KEY)
        if self.documentation.is_of_one_event:
            own.append(LOCATION)
        if self.documentation.is_limited:
            own += HEADERS_OF_RATES
        return own + HEADERS_OF_ALL

    def get_serializer_name(self, serializer: Serializer[Any], direction: str) -> str:
        # `PostSchema`, since `Post` is the model.
        return type(serializer).__name__.removesuffix("Schema")

    def _errors(self) -> dict[int, OpenApiResponse]:
        """Return the errors by their statuses: all have one schema, that of this operation's
        codes.
        """
        codes = sorted(set(self._codes()), key=lambda code: (CODES[code].status, code))
        words = self.documentation.operation_id.split("_")
        name = "".join(word.capitalize() for word in [*words, "error"])
        component = ResolvedComponent(name, ResolvedComponent.SCHEMA, _error_of(codes), name)  # type: ignore[no-untyped-call]
        self.registry.register_on_missing(component)
        return {
            status: OpenApiResponse(component.ref, description=_meanings(of_status))
            for status, of_status in groupby(codes, lambda code: CODES[code].status)
        }

    def _codes(self) -> Iterator[str]:
        yield from OF_ALL
        if "{" in self.path:
            yield from OF_IDS_IN_PATHS
        if self.method != "GET":
            yield from OF_METHODS_WITH_BODIES
        if self.documentation.body is not None:
            yield from OF_BODIES
        if self.documentation.is_write:
            yield from OF_WRITES
        yield from self.documentation.errors


def finish(result: dict[str, Any], **_more: Any) -> dict[str, Any]:
    """Add the schema of all errors, say that bodies must be there, and leave enums where they are
    (`POSTPROCESSING_HOOKS`).

    As schemas of their own they would have names that change when another route has such a field.
    """
    for methods in result["paths"].values():
        for operation in methods.values():
            if body := operation.get("requestBody"):
                # Also one of which each field may be left out.
                body["required"] = True
    schemas = result["components"]["schemas"]
    for schema in schemas.values():
        for field in schema.get("properties", {}).values():
            field.pop("x-spec-enum-id", None)
    schemas["Error"] = ERROR
    return result


def _error_of(codes: list[str]) -> dict[str, Any]:
    code = {"type": "string", "enum": codes}
    own = {"type": "object", "properties": {"code": code}, "required": ["code"]}
    return {"allOf": [{"$ref": "#/components/schemas/Error"}, own]}


def _meanings(codes: Iterable[str]) -> str:
    return "; ".join(f"`{code}`: {CODES[code].meaning}" for code in codes)


class JWTScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    target_class = "feedsite.authentication.JWTAuthentication"
    name = "bearer"

    def get_security_definition(self, auto_schema: AutoSchema) -> dict[str, str]:
        return {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
