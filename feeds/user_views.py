"""Erasing a user, and what is held about one: `/users/{user_id}`."""

from itertools import chain

from django.http import HttpResponse, StreamingHttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import extend_schema
from rest_framework.exceptions import PermissionDenied
from rest_framework.request import Request
from rest_framework.views import APIView

from feeds import export, services
from posts.principal import principal
from posts.rates import WriteRate
from posts.schemas import AcceptedSchema
from posts.views import IDEMPOTENCY, accepted, event_headers, write_ids

ERASE_ANY_USER = "users:erase"
EXPORT_ANY_USER = "users:export"
JSON_LINES = "application/x-ndjson"


class UserView(APIView):
    throttle_classes = [WriteRate]

    @extend_schema(request=None, parameters=[IDEMPOTENCY], responses={202: AcceptedSchema})
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
    @extend_schema(responses={(200, JSON_LINES): OpenApiTypes.STR})
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
