"""The metrics, as a real Prometheus scrapes them from running processes, compared with what was
sent.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from django.db import connection, transaction

from eventbus.models import ProcessedEvent
from feeds.models import FeedEntry
from tests.e2e.system import System, wait_until
from tests.observability.processes import Worker
from tests.observability.prometheus import ROOT, Prometheus
from tests.observability.traffic import Traffic, curse

pytestmark = [pytest.mark.e2e, pytest.mark.django_db(transaction=True)]

DASHBOARD = ROOT / "grafana/dashboards/feed.json"


@contextmanager
def scraping(system: System, *workers: Worker) -> Iterator[Prometheus]:
    targets = {
        "api": [system.url.removeprefix("http://")],
        "workers": [worker.url.removeprefix("http://") for worker in workers],
    }
    prometheus = Prometheus(system.directory, targets)
    try:
        prometheus.wait_for_targets()
        yield prometheus
    finally:
        prometheus.stop()


def send_everything(system: System) -> Traffic:
    traffic = Traffic(system)
    traffic.follow()
    traffic.settle()
    traffic.read()
    with curse():
        traffic.post(30)
        traffic.send_poison(3)
        traffic.send_cursed(2)
        traffic.settle()
    traffic.repeat(4)
    traffic.read()
    return traffic


def test_what_prometheus_counts_is_what_was_sent(system: System) -> None:
    fanout, dlq = Worker(system, "run_fanout"), Worker(system, "run_dlq")
    with scraping(system, fanout, dlq) as prometheus:
        traffic = send_everything(system)

        def settles(expression: str, expected: float) -> None:
            """Wait for the value; scrapes and the workers' own rounds take their time."""
            wait_until(
                lambda: prometheus.value(expression) == expected,
                message=lambda: f"{expression}: {expected}, not {prometheus.query(expression)}",
            )

        assert traffic.published == {"user.followed": 24, "post.created": 32}
        for event_type, count in traffic.published.items():
            settles(f'sum(events_published_total{{type="{event_type}", result="ok"}})', count)
        # Both API processes had a share in that.
        assert len(list(system.directory.glob("metrics-*/counter_*.db"))) >= 2

        processed = ProcessedEvent.objects.filter(type="post.created").count()
        assert processed == 32 - traffic.cursed
        for histogram in ("event_processing_duration_seconds", "feed_time_to_visible_seconds"):
            settles(f'{histogram}_count{{type="post.created"}}', processed + traffic.repeated)
            settles(f'{histogram}_count{{type="user.followed"}}', 24)
        settles('events_redelivered_total{type="post.created"}', traffic.repeated)
        settles("sum(fanout_rows_total)", FeedEntry.objects.count())

        # Undecodable bytes are not tried again; what fails for no known reason is, twice.
        settles('dlq_messages_total{reason="UndecodableEvent"}', traffic.poison)
        settles("sum(dlq_messages_total)", traffic.poison + traffic.cursed)
        settles('sum(event_retry_total{type="post.created"})', 2 * traffic.cursed)
        settles("sum(event_retry_total)", 2 * traffic.cursed)
        settles("dlq_size", traffic.poison + traffic.cursed)

        for result, count in traffic.reads.items():
            settles(f'sum(feed_cache_requests_total{{result="{result}"}})', count)
        settles('group:kafka_consumer_lag:sum{group="fanout"}', 0)
        settles('group:kafka_consumer_lag:sum{group="dlq"}', 0)
        settles("min(dependency_up)", 1)
        settles('count(ALERTS{alertname!="DeadLettersWaiting"}) or vector(0)', 0)


def test_the_lag_is_the_backlog_with_no_worker_with_one_that_hangs_and_with_two_that_share(
    system: System,
) -> None:
    traffic = Traffic(system)
    dlq = Worker(system, "run_dlq")
    with scraping(system, dlq) as prometheus:
        traffic.post(25)
        wait_until(lambda: prometheus.value('group:kafka_consumer_lag:sum{group="fanout"}') == 25)
        assert (
            prometheus.value('sum(kafka_consumer_assigned_partitions{group="fanout"}) or vector(0)')
            == 0
        )
        wait_until(
            lambda: prometheus.query('ALERTS{alertname="NoFanoutWorker", alertstate="pending"}')
        )

    first = Worker(system, "run_fanout")
    with scraping(system, dlq, first) as prometheus:
        wait_until(lambda: prometheus.value('group:kafka_consumer_lag:sum{group="fanout"}') == 0)
        second = Worker(system, "run_fanout")
        wait_until(lambda: first.partitions() < 6 and first.partitions() + second.partitions() == 6)
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("LOCK TABLE processed_events")
            traffic.post(20)
            wait_until(
                lambda: prometheus.value('group:kafka_consumer_lag:sum{group="fanout"}') == 20
            )
            wait_until(lambda: second.lag() == 20)
        wait_until(lambda: prometheus.value('group:kafka_consumer_lag:sum{group="fanout"}') == 0)
        assert first.process.stop() == 0
        traffic.post(15)
        wait_until(lambda: second.partitions() == 6 and second.lag() == 0)
        wait_until(lambda: prometheus.value('group:kafka_consumer_lag:sum{group="fanout"}') == 0)
        traffic.settle()


def queries(dashboard: Path) -> dict[str, str]:
    """Return every expression of the dashboard by panel and legend, Grafana's variables filled
    in.
    """
    panels = json.loads(dashboard.read_text())["panels"]
    return {
        f"{panel['title']}: {target['legendFormat']}": re.sub(
            r"\$__(rate_interval|range)", "1m", target["expr"]
        )
        for panel in panels
        for target in panel.get("targets", [])
    }


def test_every_query_of_the_dashboard_has_something_to_show_after_load(system: System) -> None:
    fanout, dlq = Worker(system, "run_fanout"), Worker(system, "run_dlq")
    with scraping(system, fanout, dlq) as prometheus:
        send_everything(system)
        asked = queries(DASHBOARD)
        assert len(asked) >= 20

        def empty() -> list[str]:
            return [name for name, expression in asked.items() if not prometheus.query(expression)]

        wait_until(lambda: not empty(), message=lambda: f"Panels that show nothing: {empty()}")
