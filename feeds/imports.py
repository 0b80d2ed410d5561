"""Loading a follow graph straight into the database, in bulk."""

import csv
from collections.abc import Iterable, Iterator
from typing import NamedTuple, TextIO

from django.db import connection, transaction

from eventbus import locks, node_lease
from eventbus.csvfiles import BadLine
from eventbus.envelope import parse_id
from eventbus.exceptions import InvalidEvent
from feeds import cache, fanout


class Imported(NamedTuple):
    lines: int
    new_follows: int


_STAGE = "CREATE TEMPORARY TABLE staged_follows (follower_id bigint, followee_id bigint) ON COMMIT DROP"
_COPY = "COPY staged_follows FROM STDIN"

# A pair that is active already keeps its event id, so that importing a file twice changes nothing.
_MERGE = """
INSERT INTO follows (follower_id, followee_id, active, idle, event_id)
SELECT DISTINCT follower_id, followee_id, true, coalesce(feeds.idle, false), %s::bigint
FROM staged_follows LEFT JOIN feeds ON user_id = follower_id
ORDER BY 1, 2
ON CONFLICT (follower_id, followee_id) DO UPDATE
SET active = true, idle = EXCLUDED.idle, event_id = EXCLUDED.event_id
WHERE NOT follows.active AND follows.event_id < EXCLUDED.event_id
"""

_FEEDS = """
INSERT INTO feeds (user_id)
SELECT follower_id FROM staged_follows UNION SELECT followee_id FROM staged_follows ORDER BY 1
ON CONFLICT DO NOTHING
"""

# The cache is closed with this, so no page is left that does not watch those who come to be pulled.
_COUNTS = """
UPDATE feeds SET
    follower_count = counted.n,
    pulled_since = CASE WHEN counted.n >= %s THEN coalesce(pulled_since, 'epoch') ELSE pulled_since END
FROM (
    SELECT followee_id, count(*) AS n FROM follows
    WHERE active AND followee_id IN (SELECT followee_id FROM staged_follows) GROUP BY 1
) AS counted
WHERE user_id = followee_id AND follower_count <> counted.n
"""

# Instead of back-filling what may be millions of rows: above the newest post of those newly followed nothing is
# missing, and below it reads take the join. The rows at or below the floor are then garbage.
_RAISE_FLOORS = """
UPDATE feeds SET floor = newest.id
FROM (
    SELECT follower_id, max(latest.id) AS id
    FROM follows
    CROSS JOIN LATERAL (
        SELECT id FROM posts WHERE author_id = followee_id AND deleted_event_id IS NULL ORDER BY id DESC LIMIT 1
    ) AS latest
    WHERE event_id = %s
    GROUP BY 1
) AS newest
WHERE user_id = newest.follower_id AND floor < newest.id
"""


@transaction.atomic
def import_follows(pairs: Iterable[tuple[int, int]]) -> Imported:
    """Make all `pairs` (follower, followee) active, or none of them when reading them fails.

    Workers wait during the merge, so no post can fall between an import and a fan-out. The cache is closed with the
    commit; call `cache.wait_until_noticed` afterwards.
    """
    event_id = node_lease.next_id()
    with connection.cursor() as cursor:
        cursor.execute(_STAGE)
        lines = 0
        with cursor.copy(_COPY) as copy:
            for pair in pairs:
                copy.write_row(pair)
                lines += 1
        locks.acquire_bulk_load()
        cursor.execute(_MERGE, [event_id])
        new = cursor.rowcount
        cursor.execute(_FEEDS)
        cursor.execute(_COUNTS, [fanout.pulled_from()])
        cursor.execute(_RAISE_FLOORS, [event_id])
    if new:
        cache.mark_closed()
    return Imported(lines, new)


def read_pairs(file: TextIO, *, mutual: bool, id_offset: int = 0) -> Iterator[tuple[int, int]]:
    """Yield (follower, followee), each id plus `id_offset`, from CSV with a header line. Raises `BadLine`."""
    rows = csv.reader(file)
    header = [name.strip() for name in next(rows, [])]
    if len(header) != 2 or (not mutual and header != ["follower", "followee"]):
        wanted = "two columns" if mutual else "follower,followee"
        raise BadLine(f"line 1: the header must be {wanted}, not {','.join(header)!r}")
    for row in rows:
        if not row:
            continue
        pair = _pair(row, rows.line_num, id_offset)
        yield pair
        if mutual:
            yield pair[::-1]


def _pair(row: list[str], line: int, id_offset: int) -> tuple[int, int]:
    if len(row) != 2:
        raise BadLine(f"line {line}: expected 2 columns, found {len(row)}")
    try:
        follower, followee = (parse_id(str(int(text) + id_offset), "a user id") for text in row)
    except ValueError as error:
        raise BadLine(f"line {line}: {','.join(row)!r} is not a pair of whole numbers") from error
    except InvalidEvent as error:
        raise BadLine(f"line {line}: {error}") from error
    if follower == followee:
        raise BadLine(f"line {line}: user {follower} cannot follow themselves")
    return follower, followee
