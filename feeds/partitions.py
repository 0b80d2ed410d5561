"""`feed_entries` by age: partitions are made ahead of time, and the oldest is dropped below the
horizon.

Ids are time, so a partition holds the entries of the posts of a minute, an hour or a day: of so
long as fills it at the rate of now. Rows go into the one that has begun last, and what a row costs
depends on the size of its index, not of all that was ever written. Nobody waits for any of it:

- `ATTACH` of an empty table, with the bounds that it has, looks through nothing and keeps nobody
  off;
- the horizon rises first, so that nobody reads what is below it; `DETACH … CONCURRENTLY` then waits
  for those who still may, while everybody else goes on; what is detached is nobody's and is
  dropped.

A process that dies at any point leaves right feeds, and the next turn, of whichever worker, goes on
from what there is.
"""

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import structlog
from django import db
from django.conf import settings

from eventbus import metrics
from eventbus.background import Repeating
from eventbus.database.current import atomic
from eventbus.database.sql import execute, fetch
from eventbus.ids import snowflake
from feeds.models import Horizon

AHEAD = 3  # partitions that have not begun
CHECK_SECONDS = 2.0
# How long a turn may take to make partitions, and to drop one. A turn that fails, or dies, ends no
# sooner: so all workers together try no more often than this.
TURN_SECONDS = 10
DROP_SECONDS = 60
LOCK_PATIENCE = (
    "5s"  # for ATTACH, which waits for others who change the table, not for those who use it
)

MINUTE_MS = 60_000
FIRST_MS = 60 * MINUTE_MS  # while no rate is known
SHORTEST_MS = MINUTE_MS
LONGEST_MS = 24 * 60 * MINUTE_MS
# The busiest of so many partitions decides on the length of the next, so that a lull or an outage
# does not.
REMEMBERED = 4

# Readers plan for so many at first, and for so many times as many with each further step, however
# many there are.
FEW = 4
FURTHER = 4

ROWS_A_PAGE = 157  # of 8 kB, when it is full

# `bound` is missing from a partition that is dropped at this moment, and `pages` too.
_ALL = """
SELECT relname, bound, pages * %s, inhdetachpending FROM (
    SELECT
        relname, inhdetachpending,
        regexp_match(
            pg_get_expr(relpartbound, pg_class.oid), 'FROM \\(''?(\\d+)''?\\) TO \\(''?(\\d+)''?\\)'
        )::bigint[] AS bound,
        pg_relation_size(pg_class.oid) / current_setting('block_size')::int AS pages
    FROM pg_inherits JOIN pg_class ON pg_class.oid = inhrelid
    WHERE inhparent = 'feed_entries'::regclass
) AS partitions
WHERE bound IS NOT NULL AND pages IS NOT NULL
ORDER BY bound
"""

# All partitions have one owner, who may drop them, whoever makes them.
_OWNER = "SELECT quote_ident(pg_get_userbyid(relowner)) FROM pg_class WHERE oid = 'feed_entries'::regclass"
_MAKE = """
CREATE TABLE {name} (LIKE feed_entries INCLUDING ALL) WITH (
    autovacuum_vacuum_scale_factor = 0.05,
    autovacuum_vacuum_insert_scale_factor = 0.05,
    autovacuum_analyze_scale_factor = 0.05
);
ALTER TABLE {name} OWNER TO {owner};
ALTER TABLE feed_entries ATTACH PARTITION {name} FOR VALUES FROM ({start}) TO ({end})
"""

_STATE = """
SELECT
    (extract(epoch FROM clock_timestamp()) * 1000)::bigint,
    coalesce(max(post_id), 0), coalesce(max(starts), '{}'), coalesce(max(dropping), '')
FROM feed_horizon
"""
_TAKE_TURN = """
UPDATE feed_horizon SET keeper_due_at = now() + %s * interval '1 second'
WHERE id = (SELECT id FROM feed_horizon WHERE keeper_due_at <= now() FOR UPDATE SKIP LOCKED)
"""
_END_TURN = "UPDATE feed_horizon SET keeper_due_at = now()"
_DROPPING = (
    "UPDATE feed_horizon SET dropping = %s, keeper_due_at = now() + %s * interval '1 second'"
)
_RAISE = "UPDATE feed_horizon SET post_id = greatest(post_id, %s), starts = %s"

log = structlog.get_logger(__name__)


class Partition(NamedTuple):
    """The entries of the posts with ids from `start` to below `end`."""

    name: str
    start: int
    end: int
    rows: int  # about, with those that are deleted and whose room was not given back
    leaving: bool = False  # being detached: PostgreSQL shows it to nobody any more

    @property
    def ms(self) -> int:
        """Return how many milliseconds of ids it is for."""
        return snowflake.milliseconds_of(self.end) - snowflake.milliseconds_of(self.start)


class Layout(NamedTuple):
    """What there is at a moment."""

    partitions: Sequence[Partition]  # oldest first
    now_ms: int  # by the clock of PostgreSQL
    horizon: int
    starts: Sequence[int]  # as readers are told
    dropping: str  # what somebody who died was about to drop, or empty

    @property
    def begun(self) -> list[Partition]:
        """Return those that posts of now or before go into."""
        now = first_id_of(self.now_ms)
        return [partition for partition in self.partitions if partition.start <= now]

    @property
    def missing(self) -> int:
        """Return how many partitions are to be made."""
        return max(0, AHEAD - (len(self.partitions) - len(self.begun)))

    @property
    def wanted_horizon(self) -> int:
        """Return the id up to which nothing is to be materialised; it never goes down."""
        horizon = self.horizon
        if self.partitions:
            # Also after somebody emptied the table that it is kept in.
            horizon = max(horizon, self.partitions[0].start - 1)
        if too_old := self.begun[: -settings.FEED_PARTITIONS]:
            horizon = max(horizon, too_old[-1].end - 1)
        return horizon

    @property
    def wanted_starts(self) -> list[int]:
        """Return where those that have begun and are above the horizon start."""
        return [
            partition.start for partition in self.begun if partition.end > self.wanted_horizon + 1
        ]

    @property
    def settled(self) -> bool:
        """Tell whether there is nothing to do."""
        return (
            not self.missing
            and not self.unread
            and not self.dropping
            and (self.horizon, list(self.starts)) == (self.wanted_horizon, self.wanted_starts)
        )

    @property
    def unread(self) -> list[Partition]:
        """Return those at or below the horizon."""
        return [partition for partition in self.partitions if partition.end <= self.horizon + 1]

    @property
    def next_ms(self) -> int:
        """Return for how long the next partition is to be, so that it gets about
        `FEED_PARTITION_ROWS` rows.
        """
        # One that has only just begun tells nothing of a rate, nor does the first, which begins
        # with the first of ids.
        observed = [
            partition
            for partition in self.begun
            if partition.start > 0 and self._age_ms(partition) >= SHORTEST_MS
        ]
        if not observed:
            return FIRST_MS
        fastest = max(
            partition.rows / self._age_ms(partition) for partition in observed[-REMEMBERED:]
        )
        longest = min(LONGEST_MS, 2 * self.partitions[-1].ms)
        wanted = settings.FEED_PARTITION_ROWS / fastest if fastest else longest
        return int(max(SHORTEST_MS, min(longest, wanted)))

    def _age_ms(self, partition: Partition) -> int:
        """Return for how much of its time posts have come."""
        return min(partition.ms, self.now_ms - snowflake.milliseconds_of(partition.start))


@contextmanager
def kept() -> Iterator[None]:
    """Have the partitions made and dropped as needed while the context lasts; failures are logged.

    Once before it begins: who writes entries then finds a place for them.
    """
    _keep_up()
    with Repeating("partitions", _keep_up, pause=CHECK_SECONDS, first_pause=CHECK_SECONDS):
        yield


def keep_up(now_ms: int | None = None) -> None:
    """Make the partitions that are to be made, and drop those that are too old, unless somebody
    else is at it.

    Not within a transaction. `now_ms` takes the place of PostgreSQL's clock. Raises
    `DatabaseError`.
    """
    found = layout(now_ms)
    _tell(found)
    if found.settled or not _take_turn():
        return
    make_ahead(now_ms)
    if found.dropping:
        drop(found.dropping)
    for partition in layout(now_ms).unread:
        drop(partition.name)
    execute(_END_TURN)


def layout(now_ms: int | None = None) -> Layout:
    """Return the partitions, oldest first, and what is known of them."""
    [(now, horizon, starts, dropping)] = fetch(_STATE)
    found = [
        Partition(name, start, end, rows, leaving)
        for name, (start, end), rows, leaving in fetch(_ALL, [ROWS_A_PAGE])
    ]
    return Layout(found, now_ms or now, horizon, starts, dropping)


def partitions() -> Sequence[Partition]:
    """Return the partitions, oldest first."""
    return layout().partitions


@atomic()
def make_ahead(now_ms: int | None = None) -> None:
    """Make the partitions that are missing, from where the last one ends, and raise the horizon.

    Keeps nobody off.

    Raises `DatabaseError`, also if somebody else does it at the same time.
    """
    execute(f"SET LOCAL lock_timeout = '{LOCK_PATIENCE}'")
    found = layout(now_ms)
    while found.missing:
        found = found._replace(partitions=[*found.partitions, _make_next(found)])
    if found.wanted_horizon > found.horizon:
        log.info("horizon_raised", post_id=found.wanted_horizon)
    execute(_RAISE, [found.wanted_horizon, found.wanted_starts])


def make(name: str, start: int, end: int) -> Partition:
    """Make an empty partition. Raises `DatabaseError`."""
    [(owner,)] = fetch(_OWNER)
    execute(_MAKE.format(name=name, owner=owner, start=start, end=end))
    log.info("partition_made", name=name, start=start, end=end)
    return Partition(name, start, end, rows=0)


def drop(name: str) -> None:
    """Drop a partition that is below the horizon. Keeps nobody off. May be repeated.

    Waits for those who may still read it, such as a dump, but no longer than `lock_timeout`; then,
    or when the process dies, it stays detached by half, which nobody notices. Not within a
    transaction. Raises `DatabaseError`.
    """
    # First, for once it is detached nothing else tells that it is ours to drop.
    execute(_DROPPING, [name, DROP_SECONDS])
    attached = [partition for partition in partitions() if partition.name == name]
    if attached:
        how = "FINALIZE" if attached[0].leaving else "CONCURRENTLY"
        execute(f"ALTER TABLE feed_entries DETACH PARTITION {name} {how}")
    execute(f"DROP TABLE IF EXISTS {name}")
    execute(_DROPPING, ["", DROP_SECONDS])
    log.info("partition_dropped", name=name)


def first_id_of(ms: int) -> int:
    """Return the lowest id of a Unix millisecond."""
    return snowflake.compose(ms, 0, 0)


def low_of(starts: Sequence[int], high: int, few: int) -> int:
    """Return an id below `high` between which and `high` there are only `few` partitions that have
    begun.
    """
    first = bisect_right(starts, high) - few
    return starts[first] - 1 if first > 0 else 0


def _make_next(found: Layout) -> Partition:
    number, start = 1, 0
    if found.partitions:
        newest = found.partitions[-1]
        number, start = int(newest.name.rpartition("_")[2]) + 1, newest.end
    # After an outage one partition is for all the time that it took.
    begins_ms = max(snowflake.milliseconds_of(start), found.now_ms)
    return make(f"feed_entries_{number}", start, first_id_of(begins_ms + found.next_ms))


def _take_turn() -> bool:
    Horizon.objects.get_or_create(id=1)
    return execute(_TAKE_TURN, [TURN_SECONDS]) == 1


def _tell(found: Layout) -> None:
    metrics.feed_entries_partition_rows.clear()
    for partition in found.partitions:
        metrics.feed_entries_partition_rows.labels(partition.name).set(partition.rows)
    end_ms = (
        snowflake.milliseconds_of(found.partitions[-1].end) if found.partitions else found.now_ms
    )
    metrics.feed_entries_partitions_ahead_seconds.set((end_ms - found.now_ms) / 1_000)


def _keep_up() -> None:
    try:
        keep_up()
    except db.Error as error:
        log.warning("partitions_not_kept", error=str(error).strip())
