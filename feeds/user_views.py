"""Erasing a user, and what is held about one: `/users/{user_id}`."""

from itertools import chain

from django.http import HttpResponse, StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from rest_framework.exceptions import PermissionDenied
from rest_framework.request import Request
from rest_framework.views import APIView

from feeds import export, services
from posts.documented import documented
from posts.principal import principal
from posts.rates import WriteRate
from posts.schemas import AcceptedErasure
from posts.views import accepted, event_headers, write_ids

ERASE_ANY_USER = "users:erase"
EXPORT_ANY_USER = "users:export"
JSON_LINES = "application/x-ndjson"


class UserView(APIView):
    throttle_classes = [WriteRate]

    @documented("erase_user", {202: AcceptedErasure}, errors=["not_your_user"])
    def delete(self, request: Request, user_id: int) -> HttpResponse:
        """Erase all that a user did and all that is held about them, up to now; oneself, or with
        `users:erase` anyone. `/events/{event_id}` is `pending` until all of it is gone.
        """
        _require(request, user_id, ERASE_ANY_USER, "Erasing someone else")
        fact = services.erase_user(
            user_id=user_id,
            actor_id=principal(request).user_id,
            ids=write_ids(request),
            headers=event_headers(request),
        )
        return accepted(request, fact.event_id, user_id=str(user_id))


class ExportView(APIView):
    @documented(
        "export_user",
        {(200, JSON_LINES): OpenApiTypes.STR},
        errors=["not_your_user", "too_many_exports", "no_room"],
    )
    def get(self, request: Request, user_id: int) -> StreamingHttpResponse:
        """Return everything held about a user as JSON lines; oneself, or with `users:export`
        anyone. The last line is of the kind `end`: without it the answer broke off.
        """
        _require(request, user_id, EXPORT_ANY_USER, "Exporting someone else's data")
        pieces = export.pieces(user_id)
        # What fails now is told by a status.
        first = next(pieces)
        return StreamingHttpResponse(chain([first], pieces), content_type=JSON_LINES)


def _require(request: Request, user_id: int, scope: str, what: str) -> None:
    asking = principal(request)
    if user_id != asking.user_id and scope not in asking.scopes:
        raise PermissionDenied(f"{what} needs the scope {scope}.", code="not_your_user")
