"""Tables of the event path: processed events, dead letters, reserved ids and who may mint which."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from django.contrib.postgres.functions import RandomUUID
from django.db import models
from django.db.models.functions import Now
from django.utils.text import Truncator

from eventbus.database.sql import bigints, execute, fetch
from eventbus.event import Event

OVERDUE_AFTER = timedelta(minutes=10)
NAME_MESSAGE_CHARS = 40

# As arrays rather than through the ORM, which spends ten times as long on a batch as PostgreSQL
# does.
_PROCESSED_AMONG = "SELECT event_id FROM processed_events WHERE event_id = ANY(%s::bigint[])"
# The condition in SQL that an event, or what it made, is from before its user was erased. Each user is
# looked up: EXISTS may be made a join, with all who were ever erased if statistics take them for few.
BEFORE_ERASURE = "coalesce((SELECT erasures.event_id > {id} FROM erasures WHERE erasures.user_id = {user}), false)"

# The statement that makes an event processed counts it for the pipeline page too: never one without
# the other.
_RECORD = f"""
WITH new AS (
    SELECT * FROM unnest(%s::bigint[], %s::bigint[], %s::text[], %s::double precision[])
        AS new (event_id, actor_id, type, seconds)
), recorded AS (
    INSERT INTO processed_events (event_id, actor_id, type)
    SELECT event_id, CASE WHEN NOT {BEFORE_ERASURE.format(user="actor_id", id="new.event_id")} THEN actor_id END, type
    FROM new ORDER BY 1
)
INSERT INTO pipeline_minutes (minute, worker_id, type, events, seconds)
SELECT date_trunc('minute', now()), %s, type, count(*), sum(seconds) FROM new GROUP BY type ORDER BY type
ON CONFLICT (minute, worker_id, type) DO UPDATE SET
    events = pipeline_minutes.events + EXCLUDED.events, seconds = pipeline_minutes.seconds + EXCLUDED.seconds
"""  # noqa: S608 - composed of constants


class ProcessedEventQuerySet(models.QuerySet["ProcessedEvent"]):
    def ids_among(self, events: Iterable[Event]) -> set[int]:
        """Return the ids of those of `events` that were processed before (one index look-up)."""
        found = fetch(_PROCESSED_AMONG, [bigints(event.event_id for event in events)])
        return {event_id for (event_id,) in found}

    def record(self, events: Sequence[Event], seconds: Sequence[float], worker_id: UUID) -> None:
        """Remember `events` as processed, in one statement and in id order (so workers cannot
        deadlock).

        Adds them, and the seconds that each has taken so far, to the worker's `pipeline_minutes`.
        """
        columns: list[Any] = [
            bigints(event.event_id for event in events),
            bigints(event.actor_id for event in events),
            [event.type for event in events],
            list(seconds),
        ]
        execute(_RECORD, [*columns, worker_id])


class ProcessedEvent(models.Model):
    """An event whose effect is committed; written in the very transaction of that effect."""

    event_id = models.BigIntegerField(primary_key=True)
    actor_id = models.BigIntegerField(
        null=True, help_text="whose event it was; null for those of before this was kept"
    )
    type = models.CharField(max_length=64)
    processed_at = models.DateTimeField(db_default=Now())

    objects = ProcessedEventQuerySet.as_manager()

    class Meta:
        db_table = "processed_events"

    def __str__(self) -> str:
        return f"{self.type} {self.event_id}"


class ConsumerOffset(models.Model):
    """Where a group goes on in a partition; see `eventbus.consume.offsets`.

    Never past what has its effect in this database.
    """

    pk = models.CompositePrimaryKey("group", "topic", "partition")
    group = models.CharField(max_length=255)
    topic = models.CharField(max_length=249)
    partition = models.IntegerField()
    next_offset = models.BigIntegerField()
    topic_id = models.CharField(
        max_length=64, blank=True, help_text="another topic of this name has another one"
    )
    updated_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "consumer_offsets"

    def __str__(self) -> str:
        return f"{self.group} {self.topic}/{self.partition} {self.next_offset}"


class PipelineMinute(models.Model):
    """The events of a type that a worker has processed in a minute, counted in their own
    transactions.
    """

    pk = models.CompositePrimaryKey("minute", "worker_id", "type")
    minute = models.DateTimeField()
    worker_id = models.UUIDField()
    type = models.CharField(max_length=64)
    events = models.BigIntegerField()
    seconds = models.FloatField(help_text="from taking each event's batch to its commit, summed")

    class Meta:
        db_table = "pipeline_minutes"

    def __str__(self) -> str:
        return f"{self.events} {self.type} at {self.minute:%H:%M}"


class WorkerHeartbeat(models.Model):
    """What a worker last told of itself; see `eventbus.watch.heartbeat`.

    Gone an hour after its last beat.
    """

    worker_id = models.UUIDField(primary_key=True)
    topic = models.CharField(max_length=249)
    group = models.CharField(max_length=255)
    host = models.CharField(max_length=255)
    pid = models.IntegerField()
    started_at = models.DateTimeField()
    last_seen_at = models.DateTimeField(db_default=Now())
    left_at = models.DateTimeField(null=True, help_text="when it stopped as it was told to")
    partitions = models.JSONField(help_text="numbers of the partitions it has")
    records_in_hand = models.IntegerField(help_text="of the batch it works on")
    busy_seconds = models.FloatField(help_text="how long it has worked on that batch")
    records_done = models.BigIntegerField(help_text="since it started, repeated ones included")
    slowest = models.JSONField(
        help_text="the slowest event of each minute of its last hour, slowest first"
    )

    class Meta:
        db_table = "worker_heartbeats"

    def __str__(self) -> str:
        return f"{self.group} {self.host}:{self.pid}"


class SnowflakeNode(models.Model):
    """A node id and the end of the last time range leased to anyone for it."""

    node_id = models.SmallIntegerField(primary_key=True)
    owner = models.UUIDField(null=True)
    leased_until_ms = models.BigIntegerField(default=0)

    class Meta:
        db_table = "snowflake_nodes"

    def __str__(self) -> str:
        return f"node {self.node_id}"


class CellIdentity(models.Model):
    """The single row that says which cell this database is, and whose feeds it keeps up to date;
    none where there is one cell.
    """

    id = models.SmallIntegerField(primary_key=True, default=1)
    name = models.CharField(max_length=16)
    holds = models.TextField(help_text="slots, as in the map of cells")

    class Meta:
        db_table = "cell_identity"
        constraints = [
            models.CheckConstraint(condition=models.Q(id=1), name="cell_identity_single_row")
        ]

    def __str__(self) -> str:
        return f"cell {self.name}"


class IdempotencyKey(models.Model):
    """The ids reserved for a write under a client's key, before anything was published.

    A repeated request publishes the same event again, which `processed_events` makes harmless.
    """

    pk = models.CompositePrimaryKey("user_id", "key")
    user_id = models.BigIntegerField()
    key = models.CharField(max_length=255)
    fingerprint = models.CharField(max_length=64)
    event_id = models.BigIntegerField()
    object_id = models.BigIntegerField()
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "idempotency_keys"
        indexes = [models.Index(fields=["created_at"], name="idempotency_keys_by_age")]

    def __str__(self) -> str:
        return f"{self.user_id} {self.key}"


class Erasure(models.Model):
    """That a user was erased: nothing they did before `event_id` counts, whenever it comes.

    The highest event id wins. The row stays, as the mark that keeps older events away, and says how
    far what there was has been erased (`feeds.erasure`).
    """

    user_id = models.BigIntegerField(primary_key=True)
    event_id = models.BigIntegerField()
    step = models.CharField(max_length=32, help_text="what is being erased")
    resume_after = models.BigIntegerField(
        default=0, db_default=0, help_text="the last key of the step that is done"
    )
    due_at = models.DateTimeField(db_default=Now(), help_text="nobody works on it before")
    finished_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "erasures"
        indexes = [
            models.Index(fields=["event_id"], name="erasures_by_event"),
            models.Index(
                fields=["due_at"],
                condition=models.Q(finished_at__isnull=True),
                name="erasures_unfinished",
            ),
        ]

    def __str__(self) -> str:
        return f"erasure of {self.user_id}"


class DeadLetterGroup(models.Model):
    """Dead letters with one cause: same event type, exception class and message but for the values
    in it.
    """

    fingerprint = models.CharField(max_length=64, unique=True)
    event_type = models.CharField(max_length=64, blank=True)
    exception = models.CharField(max_length=255)
    message = models.TextField(help_text="of the first failure, quoted values and ids left out")
    failures = models.BigIntegerField(
        default=0, help_text="dead letters counted here, repeated failures included"
    )
    first_seen = models.DateTimeField()
    last_seen = models.DateTimeField()

    class Meta:
        db_table = "dead_letter_groups"

    def __str__(self) -> str:
        return f"{self.cause} #{self.pk}: {Truncator(self.message).chars(NAME_MESSAGE_CHARS)}"

    @property
    def cause(self) -> str:
        """What failed and how; other groups may have the same."""
        return f"{self.event_type or 'undecodable'}: {self.exception.rpartition('.')[2]}"


class DeadLetterQuerySet(models.QuerySet["DeadLetter"]):
    def unresolved(self) -> "DeadLetterQuerySet":
        """Those that still wait for someone or something: open, replayed without an outcome yet, or
        parked.
        """
        return self.filter(state__in=DeadLetter.UNRESOLVED)

    def closed_before(self, moment: datetime) -> "DeadLetterQuerySet":
        """Those resolved or discarded before `moment`."""
        return self.exclude(state__in=DeadLetter.UNRESOLVED).filter(resolved_at__lt=moment)

    def replayable(self, *, parked: bool = False, overdue: bool = False) -> "DeadLetterQuerySet":
        """Those that may be replayed: open; with `parked` also those replayed too often before;
        with `overdue` also those whose last replay has had no outcome for `OVERDUE_AFTER`, such as
        one that Kafka lost.
        """
        chosen = models.Q(state=DeadLetter.State.OPEN)
        if parked:
            chosen |= models.Q(state=DeadLetter.State.PARKED)
        if overdue:
            chosen |= models.Q(
                state=DeadLetter.State.REPLAYED, last_replayed_at__lt=Now() - OVERDUE_AFTER
            )
        return self.filter(chosen)

    def tokens(self, entries: Iterable[int]) -> dict[int, UUID]:
        """Return the tokens of those of `entries` that there are."""
        return dict(self.filter(id__in=list(entries)).values_list("id", "token"))

    def close_replayed(self, entries: Iterable[int]) -> None:
        """Mark entries resolved whose replay has just been processed."""
        self.filter(id__in=list(entries)).unresolved().update(
            state=DeadLetter.State.RESOLVED, resolved_at=Now()
        )


class DeadLetter(models.Model):
    """An event that could not be processed, whole, with its latest failure and what became of
    it.
    """

    class State(models.TextChoices):
        OPEN = "open"
        REPLAYED = "replayed", "replayed, outcome pending"
        PARKED = "parked", "parked: replayed too often"
        RESOLVED = "resolved"
        DISCARDED = "discarded"

    UNRESOLVED = (State.OPEN, State.REPLAYED, State.PARKED)

    group = models.ForeignKey(DeadLetterGroup, on_delete=models.PROTECT, related_name="entries")
    state = models.CharField(max_length=16, choices=State, default=State.OPEN)
    token = models.UUIDField(
        db_default=RandomUUID(),
        editable=False,
        help_text="by which a replay proves that it is one of this entry",
    )
    topic = models.CharField(max_length=249, help_text="where it came from and where a replay goes")
    key = models.BinaryField(null=True)
    value = models.BinaryField(null=True)
    headers = models.JSONField(help_text="pairs of name and base64 of the bytes")
    event_id = models.BigIntegerField(null=True)
    event_type = models.CharField(max_length=64, blank=True)
    attempts = models.IntegerField(default=0, help_text="deliveries that ended here")
    replays = models.IntegerField(default=0)
    last_replayed_at = models.DateTimeField(null=True)
    resolved_at = models.DateTimeField(null=True)
    discard_reason = models.TextField(blank=True)
    created_at = models.DateTimeField(db_default=Now())
    last_failed_at = models.DateTimeField()

    objects = DeadLetterQuerySet.as_manager()

    class Meta:
        db_table = "dead_letters"
        indexes = [
            models.Index(fields=["group", "state"], name="dead_letters_by_group"),
            models.Index(fields=["event_id"], name="dead_letters_by_event"),
            models.Index(
                fields=["last_failed_at"],
                condition=models.Q(state__in=("open", "replayed", "parked")),
                name="dead_letters_unresolved",
            ),
            # The order of the list in the admin, and what failed within the last hours.
            models.Index(fields=["last_failed_at", "id"], name="dead_letters_by_failure"),
        ]
        permissions = [
            ("replay_deadletter", "Can replay dead letters"),
            ("discard_deadletter", "Can discard dead letters"),
        ]

    def __str__(self) -> str:
        return f"dead letter {self.id}"


class DeadLetterFailure(models.Model):
    """One delivery that ended in the dead-letter topic; its origin makes storing it idempotent."""

    entry = models.ForeignKey(DeadLetter, on_delete=models.CASCADE, related_name="failures")
    topic = models.CharField(max_length=249)
    partition = models.IntegerField()
    offset = models.BigIntegerField()
    timestamp_ms = models.BigIntegerField(
        help_text="of the record: a topic made anew counts its offsets from 0 again"
    )
    consumer_group = models.CharField(max_length=255)
    exception = models.CharField(max_length=255)
    message = models.TextField()
    stack_trace = models.TextField()
    retries = models.IntegerField()
    first_failed_at = models.DateTimeField()
    failed_at = models.DateTimeField()

    class Meta:
        db_table = "dead_letter_failures"
        constraints = [
            models.UniqueConstraint(
                fields=["topic", "partition", "offset", "timestamp_ms", "consumer_group"],
                name="dead_letter_origin",
            )
        ]

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}/{self.offset}"
