"""Loading a follow graph straight into the database, in bulk."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple, TextIO

from eventbus import identity
from eventbus.database import locks
from eventbus.database.current import atomic, connection
from eventbus.database.plans import without_loops
from eventbus.database.sql import execute
from eventbus.envelope import parse_id
from eventbus.exceptions import InvalidEvent
from eventbus.ids.snowflake import compose
from feeds import fanout
from feeds.models import BLOCKED, BLOCKS_OF, LAST_BLOCK, RESTING
from feeds.read import era
from posts.csvfiles import BadLine, BadLines, read_table
from posts.models import ALIVE


class Imported(NamedTuple):
    lines: int
    new_follows: int


# Older than any event, for ids of events start at 1: whatever a user ever did about a pair counts
# more than a file.
OLDEST = 0

_STAGE = """
CREATE TEMPORARY TABLE staged_follows (follower_id bigint, followee_id bigint) ON COMMIT DROP;
CREATE TEMPORARY TABLE new_follows (follower_id bigint, followee_id bigint) ON COMMIT DROP
"""
_COPY = "COPY staged_follows FROM STDIN"

_LEAVE_TO_OTHER_CELLS = "DELETE FROM staged_follows WHERE NOT {held}"
# An erased user is in no file: see ADR 32.
_LEAVE_OUT = """
DELETE FROM staged_follows USING erasures WHERE user_id = {user} AND erasures.event_id > %s
"""

# A pair that was blocked later is written as one that is ended, or held.
_BLOCKS_OF_STAGED = BLOCKS_OF.format(follower="staged.follower_id", followee="staged.followee_id")
_LATER = f"%(event)s > {LAST_BLOCK}"
_MAY_FOLLOW = f"{_LATER} AND NOT {BLOCKED}"

_FIND_NEW = f"""
INSERT INTO new_follows
SELECT DISTINCT staged.follower_id, staged.followee_id
FROM staged_follows AS staged LEFT JOIN follows USING (follower_id, followee_id)
{_BLOCKS_OF_STAGED}
WHERE (event_id IS NULL OR (NOT active AND event_id < %(event)s)) AND {_MAY_FOLLOW}
"""  # noqa: S608 - composed of constants

# The highest event id of a pair wins, as everywhere. At equal ids the event does: an import has the
# first of its millisecond.
_MERGE = f"""
INSERT INTO follows (follower_id, followee_id, active, held, idle, muted, event_id)
SELECT DISTINCT follower_id, followee_id, {_MAY_FOLLOW}, {_LATER} AND {BLOCKED},
    coalesce(feeds.idle, false), coalesce(mutes.active, false), %(event)s::bigint
FROM staged_follows AS staged LEFT JOIN feeds ON feeds.user_id = follower_id
LEFT JOIN mutes ON mutes.user_id = follower_id AND muted_id = followee_id
{_BLOCKS_OF_STAGED}
ORDER BY 1, 2
ON CONFLICT (follower_id, followee_id) DO UPDATE
SET active = EXCLUDED.active, held = EXCLUDED.held, idle = EXCLUDED.idle, muted = EXCLUDED.muted,
    event_id = EXCLUDED.event_id
WHERE follows.event_id < EXCLUDED.event_id
"""  # noqa: S608 - composed of constants

_FEEDS = """
INSERT INTO feeds (user_id, idle, floor)
SELECT id, NOT {held}, CASE WHEN {held} THEN 0 ELSE {resting} END
FROM (SELECT follower_id FROM new_follows UNION SELECT followee_id FROM new_follows) AS new (id) ORDER BY 1
ON CONFLICT DO NOTHING
"""

# The cache is closed with this, so no page is left that does not watch those who come to be pulled.
_COUNTS = """
UPDATE feeds SET
    follower_count = counted.n,
    pulled_since = CASE WHEN counted.n >= %s THEN coalesce(pulled_since, 'epoch') ELSE pulled_since END
FROM (
    SELECT followee_id, count(*) AS n FROM follows
    WHERE active AND followee_id IN (SELECT followee_id FROM new_follows) GROUP BY 1
) AS counted
WHERE user_id = followee_id AND follower_count <> counted.n
"""

# Instead of back-filling what may be millions of rows: above the newest post of those newly
# followed nothing is missing, and below it reads take the join. The rows at or below the floor are
# then garbage.
_RAISE_FLOORS = f"""
UPDATE feeds SET floor = newest.id
FROM (
    SELECT follower_id, max(latest.id) AS id
    FROM new_follows
    CROSS JOIN LATERAL (
        SELECT id FROM posts WHERE author_id = followee_id AND {ALIVE} ORDER BY id DESC LIMIT 1
    ) AS latest
    GROUP BY 1
) AS newest
WHERE user_id = newest.follower_id AND floor < newest.id
"""  # noqa: S608 - composed of constants


@atomic()
def import_follows(pairs: Iterable[tuple[int, int]], *, event_id: int = OLDEST) -> Imported:
    """Make `pairs` (follower, followee) active but for those that a later event changed or that a
    block is in the way of; none when reading fails. Followers whom another cell holds are left to
    it.

    Workers wait during the merge, so no post can fall between an import and a fan-out. The cache is
    closed with the commit; call `here.pages.wait_until_noticed` afterwards.
    """
    execute(_STAGE)
    without_loops()
    lines = _copy(pairs)
    execute(_LEAVE_TO_OTHER_CELLS.format(held=identity.holds_sql("follower_id")))
    # Nobody but us can analyse a temporary table, and a million rows are not what PostgreSQL takes
    # it to have.
    execute("ANALYZE staged_follows")
    locks.acquire_bulk_load()
    for user in ("follower_id", "followee_id"):
        execute(_LEAVE_OUT.format(user=user), [event_id])
    new = execute(_FIND_NEW, {"event": event_id})
    execute(_MERGE, {"event": event_id})
    if new:
        execute("ANALYZE new_follows")
        execute(_FEEDS.format(held=identity.holds_sql("id"), resting=RESTING))
        execute(_COUNTS, [fanout.pulled_from()])
        execute(_RAISE_FLOORS)
        era.mark_closed()
    return Imported(lines, new)


def _copy(pairs: Iterable[tuple[int, int]]) -> int:
    """Put `pairs` into the staging table; return how many there were."""
    lines = 0
    with connection.cursor() as cursor, cursor.copy(_COPY) as copy:
        for pair in pairs:
            copy.write_row(pair)
            lines += 1
    return lines


def event_id_of(moment: datetime) -> int:
    """Return an id that events have from `moment` on, for `import_follows`. Raises `ValueError`."""
    if moment > datetime.now(UTC):
        raise ValueError("lies in the future: what users do until then would have no effect")
    event_id = compose(int(moment.timestamp() * 1000), 0, 0)
    if event_id < OLDEST:
        raise ValueError("lies before all ids, which begin with the year 2024")
    return event_id


def read_pairs(
    file: TextIO, *, mutual: bool, id_offset: int = 0, bad_lines: BadLines | None = None
) -> Iterator[tuple[int, int]]:
    """Yield (follower, followee), each id plus `id_offset`, from CSV with a header line.

    Raises `BadLine`, unless `bad_lines` takes them.
    """
    bad_lines = bad_lines or BadLines()
    header, rows = read_table(file, bad_lines)
    if len(header) != 2 or (not mutual and header != ["follower", "followee"]):
        wanted = "two columns" if mutual else "follower,followee"
        raise BadLine(f"line 1: the header must be {wanted}, not {','.join(header)!r}")
    for row in rows:
        try:
            pair = _pair(row.fields, id_offset)
        except ValueError as error:
            bad_lines.add(row, str(error))
            continue
        yield pair
        if mutual:
            yield pair[::-1]


def _pair(fields: Sequence[str], id_offset: int) -> tuple[int, int]:
    """Return the pair in `fields`. Raises `ValueError` with the reason why there is none."""
    if len(fields) != 2:
        raise ValueError(f"expected 2 columns, found {len(fields)}")
    follower, followee = (_user_id(text, id_offset) for text in fields)
    if follower == followee:
        raise ValueError(f"user {follower} cannot follow themselves")
    return follower, followee


def _user_id(text: str, id_offset: int) -> int:
    try:
        if not id_offset:
            return parse_id(text, "a user id")
        number = 0 if text == "0" else parse_id(text, "an id before --id-offset")
        return parse_id(str(number + id_offset), "a user id with --id-offset")
    except InvalidEvent as error:
        raise ValueError(f"{str(error).rstrip('.')}, not {text[:40]!r}") from error
