"""Growth: what a row costs as `feed_entries` fills up, beside a bare insert of the same rows into
an equal table.
"""

import random
import time
from collections.abc import Sequence
from statistics import median
from typing import NamedTuple

from django.conf import settings

from benchmarks import database, layout, tables, workload
from benchmarks.database import Cost
from benchmarks.stand import Stand
from benchmarks.tables import progress
from benchmarks.workload import Network
from feeds import handlers, partitions, verification

FOLLOWERS = 99
ROWS_A_POST = FOLLOWERS + 1
USERS = 100_000
AUTHORS = 5_000
# Half a million rows a statement, in the order of the key: as the workers write them, so that the
# index splits alike.
POSTS_FILLED_AT_ONCE = 5_000

_FILL_POSTS = """
INSERT INTO posts (id, author_id, content, created_at)
SELECT n, 1 + n %% %(authors)s, %(text)s, now() FROM generate_series(%(after)s + 1, %(up_to)s) AS n
"""
_FILL_ENTRIES = """
INSERT INTO {table} (user_id, post_id, author_id)
SELECT reader, id, author_id
FROM posts JOIN (
    SELECT follower_id, followee_id FROM follows UNION ALL SELECT n, n FROM generate_series(1, %(authors)s) AS n
) AS reads (reader, author) ON author = author_id
WHERE id > %(after)s AND id <= %(up_to)s
ORDER BY 1, 2
"""
_STAGE = (
    "CREATE TABLE staged AS SELECT * FROM feed_entries WHERE post_id > %s ORDER BY user_id, post_id"
)
_BYTES = """
SELECT round(sum(pg_total_relation_size(inhrelid)) / (SELECT count(*) FROM feed_entries))
FROM pg_inherits WHERE inhparent = 'feed_entries'::regclass
"""


class Batch(NamedTuple):
    """The cost of the same rows by the real path and by a bare insert."""

    rows: int
    real: Cost
    bare: Cost


def run(stand: Stand, quick: bool) -> None:
    """Measure at each size of a table that all users share; verify it at the last."""
    sizes, batches = ((10**5, 10**6), 3) if quick else ((10**5, 10**6, 10**7), 5)
    network = workload.even_network(FOLLOWERS, AUTHORS, USERS)
    progress(f"growth: loading {len(network.follows):,} follows")
    workload.load(network)
    database.execute("DROP TABLE IF EXISTS bare")
    database.execute("CREATE TABLE bare (LIKE feed_entries INCLUDING ALL)")
    rows = []
    for size in sizes:
        _lay_out(size // ROWS_A_POST)
        _fill(size // ROWS_A_POST)
        rows.append([f"{size:,}", *_figures(_measure(network, size, batches))])
    head = [
        "entries before",
        "partitions",
        "rows/s",
        "bare",
        "ratio",
        "CPU µs a row",
        "bare",
        "ratio",
    ]
    head += ["first: rows/s", "bare", "B"]
    tables.table(
        f"Growth: medians of {batches} batches of {_batch_posts() * ROWS_A_POST:,} rows", head, rows
    )
    tables.note("bare: into one table filled alike. first: the batch right after a checkpoint.")
    tables.note("B: bytes an entry, with its index.")
    _verify()
    database.execute("DROP TABLE bare, staged")


def _batch_posts() -> int:
    """Return how many posts a worker takes at a time from a backlog."""
    return handlers.subscription().batch_max_events


def _lay_out(posts: int) -> None:
    """Begin anew with partitions as if so many posts had filled them: the newest one by half, if
    there are others.
    """
    database.execute("TRUNCATE posts, processed_events, bare")
    posts_a_partition = settings.FEED_PARTITION_ROWS // ROWS_A_POST
    layout.lay_out(
        range(posts_a_partition // 2, posts - posts_a_partition // 2 + 1, posts_a_partition)
    )


def _fill(up_to: int) -> None:
    """Add posts that are newer than all there are until there are `up_to`, with their entries in
    both tables.
    """
    while (posts := database.value("SELECT count(*) FROM posts")) < up_to:
        progress(
            f"growth: filling up to {up_to * ROWS_A_POST:,} entries, {posts * ROWS_A_POST:,} so far"
        )
        after = database.value("SELECT coalesce(max(id), 0) FROM posts")
        up_to_id = after + min(up_to - posts, POSTS_FILLED_AT_ONCE)
        values = {"authors": AUTHORS, "text": workload.TEXT, "after": after, "up_to": up_to_id}
        database.execute(_FILL_POSTS, values)
        for table in ("feed_entries", "bare"):
            database.execute(_FILL_ENTRIES.format(table=table), values)
    database.execute("VACUUM ANALYZE posts, feed_entries, bare")


def _measure(network: Network, size: int, batches: int) -> list[Batch]:
    dice = random.Random(size)
    database.checkpoint()
    measured = []
    for number in range(batches):
        progress(f"growth at {size:,} entries: batch {number + 1} of {batches}")
        measured.append(_batch(dice.choices(network.authors, k=_batch_posts())))
    return measured


def _batch(authors: Sequence[int]) -> Batch:
    newest = database.value("SELECT max(id) FROM posts")
    records = workload.records(authors)
    with database.measured() as real:
        workload.process(handlers.subscription(), [records])
    database.execute("DROP TABLE IF EXISTS staged")
    database.execute(_STAGE, [newest])
    database.execute("VACUUM staged")
    with database.measured() as bare:
        rows = database.execute("INSERT INTO bare SELECT * FROM staged")
    return Batch(rows, real, bare)


def _figures(batches: Sequence[Batch]) -> list[tables.Cell]:
    real = [batch.rows / batch.real.seconds for batch in batches]
    bare = [batch.rows / batch.bare.seconds for batch in batches]
    rows = sum(batch.rows for batch in batches)
    cpu = [
        sum(cost) / rows * 1e6
        for cost in ([b.real.cpu for b in batches], [b.bare.cpu for b in batches])
    ]
    return [
        str(len(partitions.layout().begun)),
        *(median(real), median(bare), tables.ratio(real, bare)),
        *(cpu[0], cpu[1], f"{cpu[1] / cpu[0]:.2f}"),
        *(real[0], bare[0]),
        str(database.value(_BYTES)),
    ]


def _verify() -> None:
    progress("growth: verifying")
    started = time.perf_counter()
    report = verification.verify()
    seconds = time.perf_counter() - started
    found = "no difference" if report.equal else f"{report}"
    tables.note(f"verify_feeds: {report.entries:,} entries in {seconds:.0f} s, {found}.")
