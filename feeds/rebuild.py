"""Materialising a feed anew: after its reader was away, or by hand.

Online: neither readers nor the fan-out wait.

Lowering a floor is the one delicate step, for above it not a single post may be missing:

    include the feed in the fan-out → wait for every transaction that may not have seen that → fill, lower the floor

A crash between these leaves the floor where it was: the feed is right, and the next read asks for
it again.
"""

from collections.abc import Sequence
from datetime import timedelta

from django.conf import settings
from django.utils import timezone

from eventbus import cells, identity
from eventbus.database import locks
from eventbus.database.current import atomic
from eventbus.database.sql import execute
from feeds.models import HORIZON, Feed
from feeds.read import here
from feeds.timeline import EVERYTHING, NEWEST_PUSHED_IDS
from posts.models import ALIVE

# Counts as a read where the walk might put the feed to rest before it is filled: another rebuild
# could then include it anew, and this one would fill it without having waited for those who saw it
# at rest.
NO_REST = timedelta(hours=1)
_INCLUDE_FEED = """
UPDATE feeds SET idle = false, last_read_at = now() WHERE user_id = %s AND (idle OR last_read_at < %s)
"""
_INCLUDE_FOLLOWS = "UPDATE follows SET idle = false WHERE follower_id = %s AND idle"

# One statement, hence one snapshot: rows that the fan-out adds meanwhile are neither seen nor
# touched. Of posts that are being deleted this waits for the outcome, and the deletion of one found
# here waits for its row. What is left from before the feed rested goes: its posts may be deleted by
# now, their authors no longer followed.
_FILL = f"""
{NEWEST_PUSHED_IDS}, floor AS (
    SELECT greatest((SELECT min(id) FROM found HAVING count(*) = %(limit)s), {HORIZON}) AS id
), wanted AS (
    SELECT id, author_id FROM posts
    WHERE id = ANY(ARRAY(SELECT found.id FROM found, floor WHERE found.id > floor.id)) AND {ALIVE}
    ORDER BY id FOR SHARE
), gone AS (
    DELETE FROM feed_entries
    WHERE user_id = %(user)s AND post_id > {HORIZON} AND post_id NOT IN (SELECT id FROM wanted)
), lowered AS (
    UPDATE feeds SET floor = (SELECT id FROM floor), rebuild_wanted = false WHERE user_id = %(user)s
)
INSERT INTO feed_entries (user_id, post_id, author_id) SELECT %(user)s, id, author_id FROM wanted ORDER BY 1, 2
ON CONFLICT DO NOTHING
"""  # noqa: S608 - composed of constants


def rebuild(user_ids: Sequence[int]) -> None:
    """Materialise the newest `FEED_MAX_ENTRIES` pushed posts of each feed above the horizon.

    May be repeated.

    Those of users whom another cell holds go on resting. A transaction a feed. Raises
    `DatabaseError`.
    """
    strangers = set(cells.outside(identity.held(), user_ids))
    user_ids = [user_id for user_id in user_ids if user_id not in strangers]
    for user_id in user_ids:
        _include(user_id)
    locks.wait_for_workers()
    for user_id in user_ids:
        _fill(user_id)
    here.pages.invalidate(user_ids)


@atomic()
def _include(user_id: int) -> None:
    _lock(user_id)
    no_rest_before = timezone.now() - timedelta(days=settings.FEED_IDLE_DAYS) + NO_REST
    execute(_INCLUDE_FEED, [user_id, no_rest_before])
    execute(_INCLUDE_FOLLOWS, [user_id])


@atomic()
def _fill(user_id: int) -> None:
    feed = _lock(user_id)
    # It may have been put to rest again meanwhile.
    if feed is not None and not feed.idle:
        # One more than fits tells where the floor must be.
        values = {"user": user_id, "limit": settings.FEED_MAX_ENTRIES + 1, **EVERYTHING}
        execute(_FILL, values)


def _lock(user_id: int) -> Feed | None:
    """Hold the row of the feed until the transaction ends: follows, the walk and other rebuilds of
    it wait.
    """
    locks.join_workers()
    return Feed.objects.select_for_update().filter(user_id=user_id).first()
