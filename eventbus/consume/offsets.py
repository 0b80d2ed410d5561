"""The offsets that a group goes on from, kept in PostgreSQL beside the effects of what lies before
them.

Kafka keeps offsets as well, and PostgreSQL may go back in time without Kafka: an asynchronous
standby takes over, a backup is restored. Its own offsets go back with it. So they are written after
the effects and before Kafka's, a worker starts from the lower of the two, and it moves them only
from where it has left them, on the server where it has: when they are elsewhere, or the server is
another one, effects may be gone, and the worker starts again from them.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from eventbus.database.sql import bigints, execute, fetch

# When the server that answers was started, and which of its databases this is: a standby that took
# over, a server that recovered and a database that was restored beside the old one each give
# another answer.
_SERVER = """
SELECT pg_postmaster_start_time()::text || ' ' || oid::text FROM pg_database WHERE datname = current_database()
"""
_KEPT = """
SELECT partition, next_offset, topic_id FROM consumer_offsets
WHERE "group" = %s AND topic = %s AND partition = ANY(%s::int[])
"""
# Where something was processed before there was this table, Kafka's offsets count.
_BEGIN = """
INSERT INTO consumer_offsets ("group", topic, partition, next_offset, topic_id)
SELECT %s, %s, partition, 0, '' FROM generate_series(0, %s - 1) AS partition
WHERE NOT EXISTS (SELECT FROM processed_events)
ON CONFLICT DO NOTHING
"""
_PUT = """
INSERT INTO consumer_offsets ("group", topic, partition, next_offset, topic_id)
SELECT %s, %s, partition, next_offset, %s FROM unnest(%s::int[], %s::bigint[]) AS new (partition, next_offset)
ON CONFLICT ("group", topic, partition) DO UPDATE SET
    next_offset = EXCLUDED.next_offset, topic_id = EXCLUDED.topic_id, updated_at = now()
"""
_ADVANCE = f"""
UPDATE consumer_offsets AS kept SET next_offset = moved.to_offset, updated_at = now()
FROM unnest(%s::int[], %s::bigint[], %s::bigint[]) AS moved (partition, from_offset, to_offset)
WHERE kept."group" = %s AND kept.topic = %s AND kept.topic_id = %s AND kept.partition = moved.partition
  AND kept.next_offset = moved.from_offset AND ({_SERVER}) = %s
RETURNING kept.partition
"""  # noqa: S608 - a constant


@dataclass(frozen=True, slots=True)
class KeptOffset:
    """What PostgreSQL keeps of a partition."""

    next_offset: int
    topic_id: str

    @property
    def is_untouched(self) -> bool:
        """Whether nothing of the partition was ever processed in this database."""
        return self.next_offset == 0 and not self.topic_id


@dataclass(frozen=True, slots=True)
class Move:
    from_offset: int
    to_offset: int


def server() -> str:
    """Return what tells this database, since its server was started, from any other.

    Raises `DatabaseError`.
    """
    [(answer,)] = fetch(_SERVER, [])
    return str(answer)


def kept(group: str, topic: str, partitions: Iterable[int]) -> dict[int, KeptOffset]:
    """Return what is kept of each of `partitions` of which something is. Raises `DatabaseError`."""
    rows = fetch(_KEPT, [group, topic, bigints(partitions)])
    return {
        partition: KeptOffset(next_offset, topic_id) for partition, next_offset, topic_id in rows
    }


def begin(group: str, topic: str, partitions: int) -> None:
    """Keep of so many partitions that nothing of them was processed, in a database in which nothing
    was: so that a copy of it that is restored knows that too.

    Raises `DatabaseError`.
    """
    execute(_BEGIN, [group, topic, partitions])


def put(group: str, topic: str, topic_id: str, offsets: Mapping[int, int]) -> None:
    """Keep these offsets, by partition, whatever was kept. Raises `DatabaseError`."""
    execute(_PUT, [group, topic, topic_id, bigints(offsets), bigints(offsets.values())])


def advance(
    group: str, topic: str, topic_id: str, server: str, moves: Mapping[int, Move]
) -> set[int]:
    """Move the offsets that are where `moves` says, by partition; return the partitions of those.

    None is moved when another server answers than `server`. Raises `DatabaseError`.
    """
    starts = bigints(move.from_offset for move in moves.values())
    ends = bigints(move.to_offset for move in moves.values())
    rows = fetch(_ADVANCE, [bigints(moves), starts, ends, group, topic, topic_id, server])
    return {partition for (partition,) in rows}
