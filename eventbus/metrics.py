"""Every Prometheus metric of the system. Labels are bounded: never a user or event id."""

from collections.abc import Callable

from prometheus_client import Counter, Gauge, Histogram

events_published_total = Counter("events_published_total", "Events handed to Kafka, by outcome.", ["type", "result"])
event_processing_duration_seconds = Histogram(
    "event_processing_duration_seconds",
    "Time from taking an event's batch to its commit, per event.",
    ["type"],
    buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30),
)
event_retry_total = Counter("event_retry_total", "Attempts repeated, by event type and reason.", ["type", "reason"])
events_redelivered_total = Counter(
    "events_redelivered_total", "Events delivered again after their effect was committed.", ["type"]
)
dlq_messages_total = Counter("dlq_messages_total", "Events sent to the dead-letter topic.", ["reason"])
kafka_consumer_lag = Gauge(
    "kafka_consumer_lag",
    "Records of a partition that this group has not committed yet.",
    ["topic", "partition", "group"],
    multiprocess_mode="livesum",
)
worker_stuck_seconds = Gauge(
    "worker_stuck_seconds",
    "For how long the batch in hand has not got done; 0 up to half a minute.",
    multiprocess_mode="max",
)
fanout_rows_total = Counter("fanout_rows_total", "Rows written to feed_entries.")
feed_entries_trimmed_total = Counter("feed_entries_trimmed_total", "Rows of feed_entries dropped below a floor.")
feed_cache_requests_total = Counter(
    "feed_cache_requests_total", "First-page reads, by what the cache answered.", ["result"]
)


def drop_lag(topic: str, partition: int, group: str) -> None:
    """Remove the lag series of a partition this process no longer owns."""
    try:
        kafka_consumer_lag.remove(topic, str(partition), group)
    except KeyError:
        return


def export_dlq_size(count: Callable[[], float]) -> None:
    """Export `dlq_size`, counted at each scrape; by `run_dlq` alone, for elsewhere it would say 0."""
    gauge = Gauge("dlq_size", "Dead letters that are not resolved or discarded.")
    gauge.set_function(count)
