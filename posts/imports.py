"""Publishing many posts at full speed: the same events as `POST /posts`, acknowledged in bulk."""

import csv
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NamedTuple, TextIO

from confluent_kafka import KafkaError

from eventbus import envelope, idempotency, kafka, metrics, producer
from eventbus.csvfiles import BadLine
from eventbus.envelope import parse_id
from eventbus.exceptions import InvalidEvent, PublishTimedOut
from posts import services
from posts.events import MAX_CONTENT_CHARS, PostCreated

DELIVERY_SECONDS = 60.0


class Draft(NamedTuple):
    """A post to be: its ids are given when it is published, its time too unless the file has one."""

    author_id: int
    content: str
    created_at: datetime | None


@dataclass(slots=True)
class Published:
    """How many posts Kafka has acknowledged, and the first refusal."""

    acknowledged: int = 0
    failed: int = 0
    first_error: str = ""
    seconds: float = 0.0


def publish_all(drafts: Iterable[Draft]) -> Published:
    """Publish a new post for each draft and return once each is acknowledged or refused.

    Raises `ProducerQueueFull`, or `PublishTimedOut` when reports stay out for a minute.
    """
    done, lock = Published(), threading.Lock()

    def count(error: KafkaError | None) -> None:
        with lock:
            if error is None:
                done.acknowledged += 1
            else:
                done.failed += 1
                done.first_error = done.first_error or error.str()
        metrics.events_published_total.labels(PostCreated.TYPE, "ok" if error is None else "failed").inc()

    started = time.monotonic()
    for draft in drafts:
        event = _to_post(draft).to_event()
        key, value = envelope.encode_key(event.key), envelope.encode(event)
        producer.get().send(kafka.FEED_EVENTS, key, value, (), count)
    if producer.get().flush(DELIVERY_SECONDS):
        raise PublishTimedOut
    done.seconds = time.monotonic() - started
    return done


def read_drafts(file: TextIO) -> Iterator[Draft]:
    """Yield each line of CSV with the columns author, text and optionally t_unix; others are ignored.

    Raises `BadLine`.
    """
    rows = csv.DictReader(file)
    missing = {"author", "text"} - set(rows.fieldnames or ())
    if missing:
        raise BadLine(f"line 1: the header lacks {' and '.join(sorted(missing))}")
    for row in rows:
        yield _draft(row, rows.line_num)


def _draft(row: dict[str, str], line: int) -> Draft:
    try:
        author_id = parse_id(row["author"], "author")
        created_at = datetime.fromtimestamp(float(row["t_unix"]), UTC) if row.get("t_unix") else None
    except (InvalidEvent, ValueError, OverflowError, OSError) as error:
        raise BadLine(f"line {line}: {error}") from error
    content = (row["text"] or "").strip()
    if not 1 <= len(content) <= MAX_CONTENT_CHARS or "\0" in content:
        raise BadLine(f"line {line}: text must have 1 to {MAX_CONTENT_CHARS} characters and no NUL")
    return Draft(author_id, content, created_at)


def _to_post(draft: Draft) -> PostCreated:
    post = services.new_post(author_id=draft.author_id, content=draft.content, ids=idempotency.fresh())
    return replace(post, created_at=draft.created_at) if draft.created_at else post
