"""Every Prometheus metric of the system. Labels are bounded: never a user or event id."""

import time
from collections.abc import Callable
from functools import cache

from prometheus_client import Counter, Gauge, Histogram

events_published_total = Counter(
    "events_published_total", "Events handed to Kafka, by outcome.", ["type", "result"]
)
event_processing_duration_seconds = Histogram(
    "event_processing_duration_seconds",
    "Time from taking an event's batch to its commit, per event.",
    ["type"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
feed_time_to_visible_seconds = Histogram(
    "feed_time_to_visible_seconds",
    "Time from Kafka's acceptance of an event to its effect being committed and visible to readers, per event.",
    ["type"],
    buckets=(0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1_800),
)
event_retry_total = Counter(
    "event_retry_total", "Attempts repeated, by event type and reason.", ["type", "reason"]
)
transaction_events_limit = Gauge(
    "transaction_events_limit",
    "Events that this worker puts into one transaction at most, for more were too much; 0: no limit.",
)
events_redelivered_total = Counter(
    "events_redelivered_total", "Events delivered again after their effect was committed.", ["type"]
)
dlq_messages_total = Counter(
    "dlq_messages_total", "Events sent to the dead-letter topic.", ["reason"]
)
kafka_records_lost_total = Counter(
    "kafka_records_lost_total",
    "Records that Kafka deleted before the group had processed them.",
    ["topic", "group"],
)
kafka_consumer_rewinds_total = Counter(
    "kafka_consumer_rewinds_total",
    "Partitions that a worker reads again from an earlier offset than Kafka keeps for the group.",
    ["topic", "group", "reason"],
)
kafka_consumer_lag = Gauge(
    "kafka_consumer_lag",
    "Records of a partition that the group has not committed yet. Each worker says the same of all: take the maximum.",
    ["topic", "partition", "group"],
)
kafka_consumer_assigned_partitions = Gauge(
    "kafka_consumer_assigned_partitions", "Partitions that this worker has.", ["topic", "group"]
)
worker_stuck_seconds = Gauge(
    "worker_stuck_seconds",
    "For how long a partition of this worker has had lag and no commit; else 0.",
    ["group"],
)
worker_heartbeat_timestamp_seconds = Gauge(
    "worker_heartbeat_timestamp_seconds",
    "When this worker last asked Kafka for records, in Unix time.",
    ["group"],
)
dependency_up = Gauge(
    "dependency_up", "Whether this worker can use that server: 1 or 0.", ["dependency"]
)
breaker_open = Gauge(
    "breaker_open",
    "Whether this process takes a server to be away and refuses at once what needs it: 1 or 0.",
    ["server"],
    multiprocess_mode="livemax",
)
api_threads_busy = Gauge(
    "api_threads_busy",
    "Threads of the API that answer a request, by kind.",
    ["kind"],
    multiprocess_mode="livesum",
)
api_requests_waiting = Gauge(
    "api_requests_waiting",
    "Requests that wait for a thread, by kind.",
    ["kind"],
    multiprocess_mode="livesum",
)
live_streams = Gauge("live_streams", "Open streams of live feeds.", multiprocess_mode="livesum")
live_events_total = Counter("live_events_total", "Events sent on live feeds, by event.", ["event"])
live_streams_cut_off_total = Counter(
    "live_streams_cut_off_total", "Streams of live feeds whose client did not read."
)
api_loop_delay_seconds = Histogram(
    "api_loop_delay_seconds",
    "How much later than due the event loop of an API process does what is due, four times a second.",
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5),
)
producers_replaced_total = Counter(
    "producers_replaced_total", "Kafka producers that failed for good and were replaced by another."
)
feed_entries_partition_rows = Gauge(
    "feed_entries_partition_rows",
    "Rows in a partition of feed_entries, about; with those whose room is free.",
    ["partition"],
)
feed_entries_partitions_ahead_seconds = Gauge(
    "feed_entries_partitions_ahead_seconds",
    "For how long there will be partitions of feed_entries for new posts.",
)
erasures_finished_total = Counter("erasures_finished_total", "Users of whom all is erased.")
erasure_oldest_seconds = Gauge(
    "erasure_oldest_seconds",
    "For how long the oldest erasure that is not finished has been asked for; 0: there is none.",
)
fanout_rows_total = Counter("fanout_rows_total", "Rows written to feed_entries.")
feed_cache_requests_total = Counter(
    "feed_cache_requests_total", "First-page reads, by what the cache answered.", ["result"]
)


def events_were_published(event_type: str, count: int) -> None:
    """Count events that Kafka has acknowledged."""
    _published(event_type).inc(count)


@cache
def _published(event_type: str) -> Counter:
    # Finding a labelled metric costs more than counting.
    return events_published_total.labels(event_type, "ok")


def observe_processed(event_type: str, taken_at: float, accepted_ms: int) -> None:
    """Observe that an event is visible now: accepted by Kafka at `accepted_ms`, taken at
    `taken_at`.

    The first is Unix time in milliseconds, the second monotonic seconds.
    """
    # Not the event's own time: that of an imported post is years ago. Clocks of two machines may
    # differ a little.
    visible_after = max(0.0, time.time() - accepted_ms / 1_000)
    processing, visible = _of_type(event_type)
    processing.observe(time.monotonic() - taken_at)
    visible.observe(visible_after)


@cache
def _of_type(event_type: str) -> tuple[Histogram, Histogram]:
    # Finding a labelled metric costs as much as observing it, twice for each event.
    return event_processing_duration_seconds.labels(
        event_type
    ), feed_time_to_visible_seconds.labels(event_type)


def export_dlq_size(count: Callable[[], float]) -> None:
    """Export `dlq_size`, as `count` tells it at each scrape; by `run_dlq` alone, for elsewhere it
    would say 0.
    """
    gauge = Gauge("dlq_size", "Dead letters that are not resolved or discarded.")
    gauge.set_function(count)
