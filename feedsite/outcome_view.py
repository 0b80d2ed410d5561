"""`GET /events/{event_id}`: what became of an accepted write."""

from drf_spectacular.utils import extend_schema
from rest_framework import serializers
from rest_framework.exceptions import NotFound
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from eventbus.watch.outcomes import outcome_of


class EventSchema(serializers.Serializer[object]):
    event_id = serializers.CharField()
    type = serializers.CharField(allow_null=True, help_text="null while pending")
    state = serializers.ChoiceField(["pending", "processed", "dead_lettered"])


class EventView(APIView):
    @extend_schema(responses={200: EventSchema})
    def get(self, _request: Request, event_id: int) -> Response:
        """Tell whether an accepted write is pending, processed or a dead letter."""
        outcome = outcome_of(event_id)
        if outcome is None:
            raise NotFound("No event of this id is on record.", code="event_not_found")
        return Response({"event_id": str(event_id), "type": outcome.type, "state": outcome.state})
