"""Making the copy of another cell's database that of a cell of its own.

The copy is of one moment, in which effects are there and the offsets behind them: what its workers
apply again has no effect twice. It goes on from *its* offsets, in groups of its own name.
"""

from confluent_kafka.admin import AdminClient

from eventbus import cells, identity, kafka
from eventbus.cellmap import refuse, slots_of, written
from eventbus.cells import Cell
from eventbus.database.current import atomic
from eventbus.database.sql import execute, fetch
from eventbus.models import CellIdentity, ConsumerOffset
from feeds.read import era

# No two-argument lock of ours has this number: see `eventbus.database.locks`.
SAME_DATABASE = 2
ALIVE_SECONDS = 10

_LOCK = "SELECT pg_advisory_xact_lock(0, %s)"
_TRY_LOCK = "SELECT pg_try_advisory_xact_lock(0, %s)"
_WORKERS = """
SELECT count(*) FROM worker_heartbeats
WHERE left_at IS NULL AND last_seen_at > clock_timestamp() - make_interval(secs => %s)
"""
# What was told of the workers of the other cell, and the leases that it has given: those who hold
# them mint by its word, not by the copy's.
_FORGET_WORKERS = "DELETE FROM worker_heartbeats; DELETE FROM pipeline_minutes"
_FORGET_LEASES = "DELETE FROM snowflake_nodes"


def adopt(cell: Cell, *, dry_run: bool) -> str:
    """Make the database behind the cell's name that cell's; return what was done, or would be.

    Done already, nothing is. Raises `ImproperlyConfigured` for a database that is no copy, or does
    not hold what the cell is to hold; `KafkaException`, for the log must reach back to it.
    """
    with cells.on(cell), atomic():
        kept = CellIdentity.objects.select_for_update().first()
        if kept is not None and kept.name == cell.name:
            return f"The database of cell {cell.name} is its own already."
        former = kept.name if kept else cells.NO_CELL
        _require_copy(cell, former)
        _require_log(cell, former)
        if kept is not None:
            _require_held(cell, kept.holds)
        if not dry_run:
            _take_over(cell, former)
    whose = f"cell {former}" if former else "no cell"
    verb = "would become" if dry_run else "is now"
    return f"The database of {whose} behind the name {cell.name} {verb} that of cell {cell.name}."


def _require_log(cell: Cell, former: str) -> None:
    """Refuse a copy from before what Kafka still has: its workers could not go on from there."""
    kept = ConsumerOffset.objects.filter(
        group=cells.named(kafka.FANOUT_GROUP, former),
        topic=kafka.FEED_EVENTS,
        # Another topic of that name is read from its beginning anyway.
        topic_id=kafka.topic_id(AdminClient(kafka.client_config()), kafka.FEED_EVENTS),
    )
    starts = {row.partition: row.next_offset for row in kept}
    oldest = kafka.oldest_offsets(kafka.FEED_EVENTS, starts)
    lost = sum(max(0, oldest[number] - start) for number, start in starts.items())
    if lost:
        refuse(
            f"Kafka no longer has {lost} events from after the copy of cell {cell.name}: make a "
            "new copy"
        )


def _require_copy(cell: Cell, former: str) -> None:
    """Refuse the database that the other cell goes on with."""
    execute(_LOCK, [SAME_DATABASE])
    for other in cells.every().values():
        if other != cell and _is_locked_in(other):
            refuse(f"Cells {other.name} and {cell.name} have the same database")
    if former not in cells.every():
        [(workers,)] = fetch(_WORKERS, [ALIVE_SECONDS])
        if workers:
            refuse(f"The database of cell {cell.name} has workers of another name: stop them first")


def _is_locked_in(other: Cell) -> bool:
    with cells.on(other), atomic():
        [(is_free,)] = fetch(_TRY_LOCK, [SAME_DATABASE])
    return not is_free


def _require_held(cell: Cell, holds: str) -> None:
    missing = cell.holds - slots_of(cell.name, holds)
    if missing:
        refuse(f"Cell {cell.name} is to hold slots {written(missing)}, which the copy has not")


def _take_over(cell: Cell, former: str) -> None:
    identity.go_on_from(former)
    execute(_FORGET_WORKERS)
    if cell != cells.of_ids():
        execute(_FORGET_LEASES)
    CellIdentity.objects.update_or_create(
        id=1, defaults={"name": cell.name, "holds": written(cell.holds)}
    )
    era.mark_closed()
