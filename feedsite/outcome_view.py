"""`GET /events/{event_id}`: what became of an accepted write."""

from rest_framework import serializers
from rest_framework.exceptions import NotFound, PermissionDenied
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from eventbus.watch.outcomes import Outcome, outcome_everywhere
from posts import visibility
from posts.documented import documented
from posts.principal import principal
from posts.schemas import Id

READ_ANY_EVENT = "events:read"


class EventSchema(serializers.Serializer[object]):
    event_id = Id()
    type = serializers.CharField(allow_null=True, help_text="null while pending")
    state = serializers.ChoiceField(
        ["pending", "processed", "dead_lettered"],
        help_text="processed: it has all the effect it will have",
    )
    step = serializers.CharField(
        required=False, help_text="what is being erased, while an erasure is pending"
    )


class EventView(APIView):
    @documented("read_event", {200: EventSchema}, errors=["event_not_found", "not_your_event"])
    def get(self, request: Request, event_id: int) -> Response:
        """Tell whether an accepted write of one's own is pending, processed or a dead letter."""
        outcome = outcome_everywhere(event_id)
        if outcome is None:
            raise NotFound("No event of this id is on record.", code="event_not_found")
        if not self._may_know(request, outcome):
            raise PermissionDenied(
                f"Asking for someone else's event needs the scope {READ_ANY_EVENT}.",
                code="not_your_event",
            )
        told = {"event_id": str(event_id), "type": outcome.type, "state": outcome.state}
        return Response(told if outcome.step is None else {**told, "step": outcome.step})

    def _may_know(self, request: Request, outcome: Outcome) -> bool:
        asking = principal(request)
        if visibility.is_public() or READ_ANY_EVENT in asking.scopes:
            return True
        return outcome.is_business_of(asking.user_id)
