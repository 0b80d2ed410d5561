"""Fan-out: rows a second of the real path beside one bare INSERT … SELECT of the same rows on the
same server.
"""

import itertools
from collections import Counter
from collections.abc import Sequence
from statistics import median

from django.conf import settings
from django.test.utils import override_settings

from benchmarks import backlog, database, tables, workload
from benchmarks.database import Cost
from benchmarks.stand import Stand
from benchmarks.tables import progress
from benchmarks.timers import Timers
from benchmarks.workload import Network
from eventbus import envelope
from eventbus.consume.lanes import EVENTS_WORTH_A_LANE
from eventbus.record import Record
from feeds import handlers
from posts.events import PostCreated

FOLLOWERS = (10, 100, 1_000, 10_000)
USERS = 20_000


def run(stand: Stand, quick: bool) -> None:
    """Measure even networks and, where its file is, a real one; then a backlog in Kafka."""
    runs, batches = (2, 1) if quick else (5, 2)
    real = workload.real_network()
    networks = [
        workload.even_network(followers, _authors(followers), USERS) for followers in FOLLOWERS
    ]
    rows, profiles = [], []
    # Above `FEED_PUSH_MAX_FOLLOWERS` nothing would be written, and there would be nothing to
    # measure.
    with override_settings(FEED_STRATEGY="push"):
        for network in [*networks, real] if real else networks:
            workload.load(network)
            rows.append(_compare(network, runs, batches))
            if not quick:
                profiles.append((network, _profile(network, batches)))
    head = [
        "network",
        "posts × rows",
        "rows/s",
        "bare by batch",
        "bare at once",
        "ratio",
        "at once",
        "CPU ratio",
    ]
    lanes = settings.FEED_FANOUT_LANES
    tables.table(
        f"Fan-out: {batches} batches a run in {lanes} lanes, medians of {runs} runs", head, rows
    )
    if not real:
        tables.note(f"The real graph was left out: {workload.GRAPH} is not in ../shared/data.")
    for network, parts in profiles:
        head = ["part", "ms a transaction", "share"]
        tables.table(
            f"Where the time of one lane alone goes ({network.name}, one run)", head, parts
        )
    backlog.run(stand, networks[1], events=4_000 if quick else 20_000)


def _authors(followers: int) -> int:
    """Return so many authors that the follows stay within what is loaded in seconds."""
    return min(200, 400_000 // followers)


def _compare(network: Network, runs: int, batches: int) -> list[tables.Cell]:
    real, by_batch, at_once = [], [], []
    rows = 0
    for number in range(runs + 1):
        progress(
            f"fan-out, {network.name}: run {number} of {runs}" + ("" if number else " (warm-up)")
        )
        work = _batches(network, batches)
        _reset("posts, feed_entries, processed_events")
        with database.measured() as cost:
            workload.process(handlers.subscription(), work)
        real.append(cost)
        rows, parts = _stage(network, work)
        by_batch.append(_bare(parts))
        at_once.append(_bare(["staged"]))
    rates = [[rows / cost.seconds for cost in costs[1:]] for costs in (real, by_batch, at_once)]
    cpu = [[rows / cost.cpu for cost in costs[1:]] for costs in (real, by_batch)]
    posts = sum(map(len, work))
    return [
        network.name,
        f"{posts} × {rows / posts:,.0f}",
        *(median(rate) for rate in rates),
        tables.ratio(rates[0], rates[1]),
        tables.ratio(rates[0], rates[2]),
        tables.ratio(cpu[0], cpu[1]),
    ]


def _batches(network: Network, batches: int) -> workload.Batches:
    """Return batches as a worker takes them from a backlog: work for each lane, and no less than is
    worth a lane.
    """
    size = settings.FEED_FANOUT_LANES * max(_posts_a_transaction(network), EVENTS_WORTH_A_LANE)
    authors = (network.authors * (batches * size // len(network.authors) + 1))[: batches * size]
    return [workload.records(authors[n * size : (n + 1) * size]) for n in range(batches)]


def _posts_a_transaction(network: Network) -> int:
    """Return how many posts fill a transaction of a lane, and so one of the bare insert."""
    followers = Counter(followee for _follower, followee in network.follows)
    rows = sum(followers[author] + 1 for author in network.authors) / len(network.authors)
    most_events: int = settings.FEED_BATCH_MAX_EVENTS
    return min(most_events, int(settings.FEED_BATCH_MAX_ROWS / rows))


def _stage(network: Network, batches: workload.Batches) -> tuple[int, list[str]]:
    """Copy the rows just written, in the order of the key: all into `staged`, and a transaction's
    each into a table.

    Returns the number of all rows, and the names of the tables.
    """
    database.execute("DROP TABLE IF EXISTS staged, bare")
    database.execute("CREATE TABLE bare (LIKE feed_entries INCLUDING ALL)")
    database.execute("CREATE TABLE staged AS SELECT * FROM feed_entries ORDER BY user_id, post_id")
    posts = [_post_id(record) for batch in batches for record in batch]
    size = _posts_a_transaction(network)
    ends = [0, *posts[size - 1 : -1 : size], posts[-1]]
    for number, (start, end) in enumerate(itertools.pairwise(ends)):
        database.execute(f"DROP TABLE IF EXISTS staged_{number}")
        database.execute(
            f"CREATE TABLE staged_{number} AS SELECT * FROM staged "  # noqa: S608 - numbers of our own
            f"WHERE post_id > {start} AND post_id <= {end} ORDER BY user_id, post_id"
        )
        # Whoever reads fresh rows first notes on their pages that they are committed, which is no
        # part of an insert.
        database.execute(f"VACUUM staged_{number}")
    database.execute("VACUUM staged")
    return int(database.value("SELECT count(*) FROM staged")), [
        f"staged_{n}" for n in range(len(ends) - 1)
    ]


def _post_id(record: Record) -> int:
    event = envelope.decode(record.value, record.key)
    return PostCreated.from_event(event).post_id


def _bare(sources: Sequence[str]) -> Cost:
    """Insert the staged rows into the identical empty table, a statement a source."""
    _reset("bare")
    with database.measured() as cost:
        for source in sources:
            database.execute(f"INSERT INTO bare SELECT * FROM {source}")  # noqa: S608 - names of our own
    return cost


def _profile(network: Network, batches: int) -> list[list[str]]:
    work, timers = _batches(network, batches), Timers()
    _reset("posts, feed_entries, processed_events")
    with timers.statements():
        total = workload.process_in_one_lane(timers.handlers(handlers.FeedHandlers()), work)
    timers.seconds["Python: decode, bookkeeping"] = total - sum(timers.seconds.values())
    parts = sorted(timers.seconds.items(), key=lambda part: -part[1])
    transactions = sum(map(len, work)) / _posts_a_transaction(network)
    return [
        [part, f"{s / transactions * 1000:.1f}", f"{s / total:.0%}"]
        for part, s in parts
        if s / total >= 0.005
    ]


def _reset(names: str) -> None:
    """Empty the tables and write out what is dirty, so that no run pays for an earlier one."""
    database.execute(f"TRUNCATE {names}")
    database.checkpoint()
