"""Publishing many posts at full speed: the same events as `POST /posts`, acknowledged in bulk."""

import hashlib
import re
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NamedTuple, TextIO

from confluent_kafka import KafkaError

from eventbus import envelope, kafka, metrics, producer
from eventbus.envelope import parse_id
from eventbus.exceptions import InvalidEvent, PublishTimedOut
from eventbus.ids.id_ranges import IdRange
from eventbus.ids.idempotency import Ids
from posts import services
from posts.csvfiles import BadLine, BadLines, CsvRow, read_table
from posts.data import compact
from posts.events import MAX_CONTENT_CHARS, PostCreated

DELIVERY_SECONDS = 60.0
# What float() takes beside it: 1_700, nan, spaces around, other scripts' digits.
_UNIX_TIME = re.compile(r"-?[0-9]{1,12}(\.[0-9]{1,9})?")


class Draft(NamedTuple):
    """A post to be: its ids are given when it is published, its time too unless the file has
    one.
    """

    author_id: int
    content: str
    created_at: datetime | None
    data: str | None = None  # compact JSON

    @property
    def fingerprint(self) -> bytes:
        """Return what tells it from others: without data the same as before there was any."""
        fields = f"author_id={self.author_id!r}, content={self.content!r}"
        text = f"Draft({fields}, created_at={self.created_at!r}){self.data or ''}"
        return text.encode()


class Checked(NamedTuple):
    """What a file holds; `fingerprint` is that of its posts, in their order, whatever else is in
    it.
    """

    posts: int
    fingerprint: str
    is_in_order_of_time: bool


@dataclass(slots=True)
class Published:
    """How many posts Kafka has acknowledged, and the first refusal."""

    acknowledged: int = 0
    failed: int = 0
    first_error: str = ""
    seconds: float = 0.0


class Publication:
    """Posts on their way to Kafka: the n-th draft gets the n-th ids.

    `done` is what has become of them so far.
    """

    def __init__(self, ids: IdRange) -> None:
        self.done = Published()
        self._ids = ids
        self._lock = threading.Lock()
        self._started = time.monotonic()

    def publish(self, drafts: Iterable[Draft]) -> None:
        """Queue a post for each draft, waiting for room.

        Raises `PublishFailed`, such as `ProducerQueueFull`.
        """
        for number, draft in enumerate(drafts):
            event = _to_post(draft, self._ids.write(number)).to_event()
            key, value = envelope.encode_key(event.key), envelope.encode(event)
            producer.get().send(kafka.FEED_EVENTS, key, value, (), self._count)

    def finish(self) -> Published:
        """Return once each is acknowledged or refused.

        Raises `PublishTimedOut` when reports stay out for a minute.
        """
        if producer.get().flush(DELIVERY_SECONDS):
            raise PublishTimedOut
        self.done.seconds = time.monotonic() - self._started
        return self.done

    def _count(self, error: KafkaError | None) -> None:
        with self._lock:
            if error is None:
                self.done.acknowledged += 1
            else:
                self.done.failed += 1
                self.done.first_error = self.done.first_error or error.str()
        metrics.events_published_total.labels(
            PostCreated.TYPE, "ok" if error is None else "failed"
        ).inc()


def check(drafts: Iterable[Draft]) -> Checked:
    """Read all drafts once and tell what they are. Raises what reading them raises."""
    posts, digest, is_in_order = 0, hashlib.sha256(), True
    newest = datetime.min.replace(tzinfo=UTC)
    now = datetime.now(UTC)
    for draft in drafts:
        posts += 1
        digest.update(draft.fingerprint)
        created_at = draft.created_at or now
        is_in_order = is_in_order and newest <= created_at
        newest = created_at
    return Checked(posts, digest.hexdigest(), is_in_order)


def read_drafts(file: TextIO, bad_lines: BadLines | None = None) -> Iterator[Draft]:
    """Yield each line of CSV with the columns author, text and optionally t_unix and data;
    others are ignored.

    Raises `BadLine`, unless `bad_lines` takes them.
    """
    bad_lines = bad_lines or BadLines()
    header, rows = read_table(file, bad_lines)
    missing = {"author", "text"} - set(header)
    if missing:
        raise BadLine(f"line 1: the header lacks {' and '.join(sorted(missing))}")
    for row in rows:
        try:
            draft = _draft(row, header)
        except ValueError as error:
            bad_lines.add(row, str(error))
        else:
            yield draft


def _draft(row: CsvRow, header: list[str]) -> Draft:
    """Return the draft in `row`. Raises `ValueError` with the reason why there is none."""
    if len(row.fields) != len(header):
        # Fewer, as where the file was cut, would be a post with half a text or without its time.
        hint = ": a text with commas must be in quotes" if len(row.fields) > len(header) else ""
        raise ValueError(f"expected {len(header)} columns, found {len(row.fields)}{hint}")
    named = dict(zip(header, row.fields, strict=True))
    author = named["author"]
    try:
        author_id = parse_id(author, "author")
    except InvalidEvent as error:
        raise ValueError(f"{str(error).rstrip('.')}, not {author[:40]!r}") from error
    data = compact(named["data"]) if named.get("data") else None
    content = named["text"].strip()
    shortest = 1 if data is None else 0
    if not shortest <= len(content) <= MAX_CONTENT_CHARS or "\0" in content:
        raise ValueError(f"text must have {shortest} to {MAX_CONTENT_CHARS} characters and no NUL")
    return Draft(author_id, content, _time(named.get("t_unix", "")), data)


def _time(text: str) -> datetime | None:
    if not text:
        return None
    try:
        if _UNIX_TIME.fullmatch(text):
            return datetime.fromtimestamp(float(text), UTC)
    except (ValueError, OverflowError, OSError):
        pass  # beyond the year 9999
    raise ValueError(
        f"t_unix must be seconds since 1970, such as 1700000000 or 1700000000.5, not {text[:40]!r}"
    )


def _to_post(draft: Draft, ids: Ids) -> PostCreated:
    post = services.new_post(
        author_id=draft.author_id, content=draft.content, data=draft.data, ids=ids
    )
    return replace(post, created_at=draft.created_at) if draft.created_at else post
