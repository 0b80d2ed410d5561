"""What is done for feeds off the hot path: rebuild those whose readers came back, put to rest,
erase users, withdraw large posts.

Every `run_fanout` does it in a thread of its own, sharing the work: a walk over all feeds whose
place is kept in `housekeeping`, and three queues, `feeds.rebuild_wanted`, `erasures` and
`withdrawals`. Feeds are right without any of it; it makes them cheap, and erases what is nobody's.
"""

import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import structlog
from django.conf import settings
from django.db.models.functions import Now
from django.utils import timezone

from eventbus import metrics
from eventbus.background import Repeating
from eventbus.database import locks
from eventbus.database.current import atomic
from eventbus.database.sql import execute, fetch
from feeds import erasure, fanout
from feeds.models import RESTING, Housekeeping
from feeds.read import era, here
from feeds.rebuild import rebuild

POLL_SECONDS = 1.0
REBUILDS_A_ROUND = 20
USERS_A_STEP = 100
# The walk sleeps so many times as long as it worked, and this long at the end of each round.
REST_FACTOR = 9
ROUND_SECONDS = 10.0

_NEXT = (
    "SELECT user_id FROM feeds WHERE user_id > %s ORDER BY user_id LIMIT %s FOR UPDATE SKIP LOCKED"
)

_REST = """
WITH resting AS (
    UPDATE feeds SET idle = true, floor = %(resting)s, rebuild_wanted = false
    WHERE user_id = ANY(%(users)s) AND NOT idle AND last_read_at < %(read_before)s
    RETURNING user_id
)
UPDATE follows SET idle = true FROM resting
WHERE follower_id = user_id AND follower_id = ANY(%(users)s) AND NOT follows.idle
"""

# Taken off the queue first, so that no two workers do the same; what fails then is asked for by the
# next read. An array, for what is in a join may be done again for each row of the other side.
_CLAIM = """
UPDATE feeds SET rebuild_wanted = false
WHERE user_id = ANY(ARRAY(
    SELECT user_id FROM feeds WHERE rebuild_wanted ORDER BY user_id LIMIT %s FOR UPDATE SKIP LOCKED
))
RETURNING user_id
"""

_UNWATCHED = "SELECT user_id FROM feeds WHERE follower_count >= %(from)s AND pulled_since IS NULL"
# No page is older than that: the cache is closed with this.
_WATCH = f"UPDATE feeds SET pulled_since = 'epoch' WHERE user_id IN ({_UNWATCHED})"  # noqa: S608 - composed of constants

log = structlog.get_logger(__name__)


def housekeeper() -> Repeating:
    """Return the context in which house is kept; failures are logged and tried again."""
    return Repeating("housekeeping", _keep_house, pause=POLL_SECONDS, first_pause=POLL_SECONDS)


def _keep_house() -> float:
    rebuild_wanted()
    pause = min(walk(), POLL_SECONDS)
    started = time.monotonic()
    has_erased = erasure.erase_part()
    metrics.erasure_oldest_seconds.set(erasure.oldest_seconds())
    if fanout.withdraw_part() or has_erased:
        # Half of the time is for others.
        pause = min(pause, time.monotonic() - started)
    return pause


def watch_pulled_authors() -> int:
    """Have readers watch every author who is pulled by the present strategy; return how many were
    not watched yet.

    For a strategy or threshold that was changed: each of these would otherwise be marked by their
    next post, and all their followers' pages be voided one by one. Workers wait meanwhile. Raises
    `DatabaseError`.
    """
    values = {"from": fanout.pulled_from()}
    [(is_any_unwatched,)] = fetch(f"SELECT EXISTS ({_UNWATCHED})", values)
    if not is_any_unwatched:
        return 0
    with atomic():
        locks.acquire_bulk_load()
        marked = execute(_WATCH, values)
        era.mark_closed()
    here.pages.wait_until_noticed()
    log.info("authors_watched", count=marked)
    return marked


def rebuild_wanted() -> int:
    """Rebuild some of the feeds whose readers came back; return how many.

    Raises `DatabaseError`.
    """
    users = _claim()
    if users:
        rebuild(users)
        log.info("feeds_rebuilt", count=len(users))
    return len(users)


def _claim() -> list[int]:
    return [user_id for (user_id,) in fetch(_CLAIM, [REBUILDS_A_ROUND])]


def walk() -> float:
    """Take a step of the walk if it is due and nobody else is at it; return the seconds until the
    next.
    """
    Housekeeping.objects.get_or_create(id=1)
    with atomic():
        locks.join_workers()
        place = (
            Housekeeping.objects.select_for_update(skip_locked=True)
            .filter(due_at__lte=Now())
            .first()
        )
        if place is None:
            return POLL_SECONDS
        started = time.monotonic()
        users = _lock_next(place.last_user_id)
        put_to_rest(users)
        pause = REST_FACTOR * (time.monotonic() - started) if users else ROUND_SECONDS
        place.last_user_id = users[-1] if users else 0
        place.due_at = Now() + timedelta(seconds=pause)
        place.save()
    return pause


def put_to_rest(user_ids: Sequence[int]) -> None:
    """Put those of the feeds to rest that nobody reads, within a transaction that holds their rows
    in `feeds`.

    Their entries are read by nobody from then on, and go with their partitions.
    """
    values: dict[str, Any] = {
        "users": list(user_ids),
        "resting": RESTING,
        "read_before": timezone.now() - timedelta(days=settings.FEED_IDLE_DAYS),
    }
    execute(_REST, values)


def _lock_next(after: int) -> list[int]:
    return [user_id for (user_id,) in fetch(_NEXT, [after, USERS_A_STEP])]
