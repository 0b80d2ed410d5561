"""The headers of dead letters and of their replays: everything named `dlq.*` is written and read
here, nowhere else.

Anyone who may write to a topic can write headers. So what is read never stops a dead letter from
being stored, and a record is believed to replay an entry only if it proves it (`Claim`).
"""

import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from uuid import UUID

from eventbus import cells
from eventbus.cells import Cell
from eventbus.ids.snowflake import MAX_ID, number_in
from eventbus.record import Headers, Record

PREFIX = "dlq."
ENTRY = PREFIX + "entry"
# With several cells, the one that a replay is for.
CELL = PREFIX + "cell"
EVENT_ID = PREFIX + "event_id"

PROOF_CHARS = 64
MAX_INT = 2**31 - 1  # of PostgreSQL's integer


def own_headers(headers: Headers) -> Headers:
    """Return the headers that the producer of the record gave it."""
    return [(name, value) for name, value in headers if not name.startswith(PREFIX)]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a record is a dead letter, and where it was."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    group: str
    exception: str
    message: str
    stack_trace: str
    attempts: int
    first_failed_at: datetime
    failed_at: datetime
    event_id: int | None
    event_type: str

    def to_headers(self) -> Headers:
        """Return the headers that tell it."""
        texts = {
            "topic": self.topic,
            "partition": str(self.partition),
            "offset": str(self.offset),
            "timestamp_ms": str(self.timestamp_ms),
            "group": self.group,
            "exception": self.exception,
            "message": self.message,
            "stack_trace": self.stack_trace,
            "attempts": str(self.attempts),
            "first_failed_at": self.first_failed_at.isoformat(timespec="milliseconds"),
            "failed_at": self.failed_at.isoformat(timespec="milliseconds"),
            "event_id": "" if self.event_id is None else str(self.event_id),
            "event_type": self.event_type,
        }
        return [(PREFIX + name, text.encode("utf-8", "replace")) for name, text in texts.items()]

    @classmethod
    def of(cls, dead_letter: Record) -> "Failure":
        """Return what the headers of a dead letter tell; for what they do not, what the record
        itself does.
        """
        texts = _texts(dead_letter)
        written_at = _moment(dead_letter.timestamp_ms)
        return cls(
            topic=texts.get("topic", dead_letter.topic)[:249],
            partition=_number(texts, "partition", dead_letter.partition, maximum=MAX_INT),
            offset=_number(texts, "offset", dead_letter.offset),
            timestamp_ms=_number(texts, "timestamp_ms", dead_letter.timestamp_ms),
            group=texts.get("group", "")[:255],
            exception=texts.get("exception", "unknown")[:255],
            message=texts.get("message", ""),
            stack_trace=texts.get("stack_trace", ""),
            attempts=_number(texts, "attempts", 0, maximum=MAX_INT),
            first_failed_at=_time(texts, "first_failed_at", written_at),
            failed_at=_time(texts, "failed_at", written_at),
            event_id=_number(texts, "event_id", 0) or None,
            event_type=texts.get("event_type", "")[:64],
        )


@dataclass(frozen=True, slots=True)
class Claim:
    """That a record is the replay of an entry; true if made with the entry's token for the bytes of
    this record.
    """

    entry_id: int
    proof: str

    @classmethod
    def of(cls, record: Record) -> "Claim | None":
        """Return what the record claims, proven or not; None if it claims nothing."""
        for name, value in record.headers:
            if name != ENTRY or value is None:
                continue
            number, _, proof = value.decode("ascii", "replace").partition(":")
            if (
                number.isdecimal()
                and len(number) <= 18
                and proof.isascii()
                and len(proof) == PROOF_CHARS
            ):
                return cls(int(number), proof)
        return None

    @classmethod
    def make(cls, entry_id: int, token: UUID, key: bytes | None, value: bytes | None) -> "Claim":
        """Return the claim to replay the entry that has this token, by a record of this key and
        value.
        """
        return cls(entry_id, _proof(entry_id, token, key, value))

    def is_proven(self, token: UUID, record: Record) -> bool:
        """Tell whether the claim was made with `token`, the entry's, for the bytes of `record`."""
        expected = _proof(self.entry_id, token, record.key, record.value)
        return hmac.compare_digest(self.proof, expected)

    def to_header(self) -> tuple[str, bytes]:
        return ENTRY, f"{self.entry_id}:{self.proof}".encode()


def cell_header(cell: Cell) -> Headers:
    """Return the header that says whose dead letter is replayed; none where there is one cell."""
    return [(CELL, cell.name.encode())] if cell.name else []


def is_for_another(record: Record) -> bool:
    """Tell whether the record says that it replays a dead letter of another cell than ours.

    Nothing proves it, for the proof is in that cell: nobody may lose an event by it. So a cell that
    is not in the map, which would not take it either, is no other cell.
    """
    return any(name == CELL and _is_another(value or b"") for name, value in record.headers)


def _is_another(cell_name: bytes) -> bool:
    name = cell_name.decode("ascii", "replace")
    return name != cells.here().name and name in cells.every()


def _proof(entry_id: int, token: UUID, key: bytes | None, value: bytes | None) -> str:
    code = hmac.new(token.bytes, digestmod=hashlib.sha256)
    code.update(b"%d" % entry_id)
    for part in (key, value):
        # With its length, so that no byte can go over from the one to the other; no bytes are not
        # none.
        code.update(b":none" if part is None else b":%d:" % len(part) + part)
    return code.hexdigest()


def _texts(record: Record) -> dict[str, str]:
    """Return the text of each of our headers by its name without the prefix, as PostgreSQL can
    store it.
    """
    texts = {}
    for name, value in record.headers:
        if name.startswith(PREFIX):
            text = (value or b"").decode("utf-8", "replace")
            texts[name.removeprefix(PREFIX)] = text.replace("\0", "\\0")
    return texts


def _number(texts: Mapping[str, str], name: str, default: int, *, maximum: int = MAX_ID) -> int:
    number = number_in(texts.get(name, ""))
    return default if number is None or number > maximum else number


def _moment(ms: int) -> datetime:
    """Return the time of a record, which its producer may set to anything; now for one that no
    calendar has.
    """
    try:
        return datetime.fromtimestamp(max(0, ms) / 1000, UTC)
    except (ValueError, OverflowError, OSError):
        return datetime.now(UTC)


def _time(texts: Mapping[str, str], name: str, default: datetime) -> datetime:
    try:
        moment = datetime.fromisoformat(texts.get(name, ""))
        return moment.astimezone(UTC) if moment.tzinfo else default
    except (ValueError, OverflowError):
        return default
