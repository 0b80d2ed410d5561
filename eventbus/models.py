"""Tables of the event path: which events were processed, and who may mint which ids."""

from collections.abc import Iterable

from django.db import models
from django.db.models.functions import Now

from eventbus.envelope import Event


class ProcessedEventQuerySet(models.QuerySet["ProcessedEvent"]):
    def ids_among(self, events: Iterable[Event]) -> set[int]:
        """Return the ids of those of `events` that were processed before (one index look-up)."""
        ids = [event.event_id for event in events]
        return set(self.filter(event_id__in=ids).values_list("event_id", flat=True))

    def record(self, events: Iterable[Event]) -> None:
        """Remember `events` as processed, in one statement and in id order (so workers cannot deadlock)."""
        ordered = sorted(events, key=lambda event: event.event_id)
        self.bulk_create(ProcessedEvent(event_id=event.event_id, type=event.type) for event in ordered)


class ProcessedEvent(models.Model):
    """An event whose effect is committed; written in the very transaction of that effect."""

    event_id = models.BigIntegerField(primary_key=True)
    type = models.CharField(max_length=64)
    processed_at = models.DateTimeField(db_default=Now())

    objects = ProcessedEventQuerySet.as_manager()

    class Meta:
        db_table = "processed_events"

    def __str__(self) -> str:
        return f"{self.type} {self.event_id}"


class SnowflakeNode(models.Model):
    """A node id and the end of the last time range leased to anyone for it."""

    node_id = models.SmallIntegerField(primary_key=True)
    owner = models.UUIDField(null=True)
    leased_until_ms = models.BigIntegerField(default=0)

    class Meta:
        db_table = "snowflake_nodes"

    def __str__(self) -> str:
        return f"node {self.node_id}"
