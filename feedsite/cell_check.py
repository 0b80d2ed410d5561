"""Whether behind the name of each cell there is its own database: looked at when the API starts."""

import structlog
from django.conf import settings
from django.db import DatabaseError, connections

from eventbus import cellmap, cells, identity
from eventbus.database.deadline import answer_within

CELL_ANSWER_SECONDS = 2.0

log = structlog.get_logger(__name__)


def require_cells() -> None:
    """Raise `ImproperlyConfigured` if the database behind the name of a cell is not that cell's.

    One that does not answer now is not waited for: its readers are refused until it does.
    """
    if not settings.FEED_CELLS.has_names:
        return
    for cell in cells.every().values():
        try:
            with answer_within(CELL_ANSWER_SECONDS):
                sentence = identity.mistaken(cell)
        except DatabaseError as error:
            log.warning("cell_not_checked", cell=cell.name, error=str(error))
            continue
        finally:
            connections[cell.alias].close()
        if sentence:
            cellmap.refuse(sentence)
