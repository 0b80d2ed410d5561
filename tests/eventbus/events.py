"""Events and records to test with."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from prometheus_client import REGISTRY

from eventbus import envelope
from eventbus.event import Event
from eventbus.ids.snowflake import MAX_SEQUENCE, NODES, compose
from eventbus.record import Record
from tests.e2e.system import PATIENCE

TYPE = "note.taken"
NOON = datetime(2026, 1, 2, 12, 0, 0, 345_000, tzinfo=UTC)
LATEST_ID = compose(int(NOON.timestamp() * 1_000), NODES - 1, MAX_SEQUENCE)


def an_event(event_id: int = 1, key: int = 1, **payload: Any) -> Event:
    return Event(
        event_id=event_id,
        type=TYPE,
        version=1,
        actor_id=key,
        occurred_at=NOON,
        key=key,
        payload=payload,
    )


def a_record(event: Event, offset: int = 0, partition: int = 0) -> Record:
    """Return the record that delivers `event`."""
    return Record(
        "notes", partition, offset, envelope.encode_key(event.key), envelope.encode(event), (), 0
    )


def counted(metric: str, **labels: str) -> float:
    """Return the value of a Prometheus metric, 0 before its first use."""
    return REGISTRY.get_sample_value(metric, labels) or 0


def eventually(condition: Callable[[], object], seconds: float = PATIENCE) -> None:
    """Wait until `condition` holds; a test whose condition never does fails here."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "This did not come true in time."
        time.sleep(0.02)
