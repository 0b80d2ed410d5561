"""How a view says what its operation is called, takes and answers, for the OpenAPI document.

    @documented("delete_post", {202: AcceptedDeletion}, errors=["not_the_author", "post_not_found"])
    def delete(self, request: Request, post_id: int) -> HttpResponse: ...

Only what is its own is said: `feedsite.openapi` adds what every operation, every body and every
write may answer. What a test of the API is answered is held against the document, so a code that is
missing here fails that test.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from drf_spectacular.utils import OpenApiParameter

from posts.codes import CODES
from posts.converters import IdConverter
from posts.pagination import MAX_LIMIT

View = TypeVar("View", bound=Callable[..., Any])

ID_PATTERN = f"^{IdConverter.regex}$"

LIMIT = OpenApiParameter(
    "limit",
    {"type": "integer", "minimum": 1, "maximum": MAX_LIMIT},
    description="how many at most; 20 if it is not given",
)
CURSOR = OpenApiParameter(
    "cursor",
    {"type": "string", "pattern": "^[A-Za-z0-9_-]+$"},
    description="`next_cursor` or `previous_cursor` of another page",
)
PAGING = [LIMIT, CURSOR]
PAGING_ERRORS = ["invalid_limit", "invalid_cursor"]
X_CACHE = OpenApiParameter(
    "X-Cache",
    str,
    OpenApiParameter.HEADER,
    response=[200],
    enum=["hit", "miss", "bypass"],
    description="whether the first page came from the cache",
)


@dataclass(frozen=True, slots=True)
class Documentation:
    """What a view says of one operation."""

    operation_id: str
    answers: Mapping[Any, Any]
    errors: Sequence[str] = ()
    body: Any = None
    parameters: Sequence[OpenApiParameter] = field(default=())

    @property
    def is_write(self) -> bool:
        """Tell whether it publishes an event."""
        return 202 in self.answers

    @property
    def is_of_one_event(self) -> bool:
        """Tell whether its 202 is about one event; else there is one for each entry of the body."""
        return self.is_write and "event_id" in self.answers[202]().fields

    @property
    def is_limited(self) -> bool:
        """Tell whether it counts for a rate."""
        return self.is_write or "throttled" in self.errors


def documented(
    operation_id: str,
    answers: Mapping[Any, Any],
    *,
    errors: Iterable[str] = (),
    body: Any = None,
    parameters: Iterable[OpenApiParameter] = (),
) -> Callable[[View], View]:
    """Note of a view's method what the OpenAPI document says of it.

    `operation_id` is the method's name in a client. `answers` has the shape of the body by status,
    or by status and media type; one of 202 makes it a write. `errors` are the codes that only this
    operation has, `body` is the shape of the request's. Raises `ValueError` on a code that is not
    in `posts.codes`.
    """
    codes = tuple(errors)
    unknown = [code for code in codes if code not in CODES]
    if unknown:
        raise ValueError(f"{operation_id}: not in posts/codes.py: {', '.join(unknown)}")
    documentation = Documentation(operation_id, answers, codes, body, tuple(parameters))

    def note(view: View) -> View:
        view.documentation = documentation  # type: ignore[attr-defined]
        return view

    return note
