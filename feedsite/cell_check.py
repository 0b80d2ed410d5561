"""Whether the servers are those of the cells in the map, or of none where there is no map: looked at
when the API starts.
"""

import structlog
from django.db import DatabaseError
from redis import RedisError

from eventbus import cellmap, cells, identity
from eventbus.database.current import asking, redis

CELL_ANSWER_SECONDS = 2.0

log = structlog.get_logger(__name__)


def require_cells() -> None:
    """Raise `ImproperlyConfigured` for servers that cannot be those of the cells in the map.

    One that does not answer now is not waited for: its readers are refused until it does.
    """
    _require_databases()
    if len(cells.every()) > 1:
        _require_different_redis()


def _require_databases() -> None:
    """Refuse a database behind the name of a cell that is not that cell's, or holds less than the
    map says; and without a map, one that is a cell's.
    """
    for cell in cells.every().values():
        try:
            with asking(cell, CELL_ANSWER_SECONDS):
                sentence = identity.problem(cell)
        except DatabaseError as error:
            log.warning("database_not_checked", cell=cell.name, error=str(error))
            continue
        if sentence:
            cellmap.refuse(sentence)


def _require_different_redis() -> None:
    """Refuse one that two cells have under different addresses."""
    names: dict[str, str] = {}
    for cell in cells.every().values():
        try:
            with cells.on(cell):
                run_id = str(redis().info("server")["run_id"])
        except (RedisError, LookupError) as error:
            log.warning("redis_of_cell_not_checked", cell=cell.name, error=str(error))
            continue
        other = names.setdefault(run_id, cell.name)
        if other != cell.name:
            cellmap.refuse(cellmap.SAME_REDIS.format(other, cell.name))
