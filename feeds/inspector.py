"""A feed as it is stored and as it is defined, side by side: the invariant of `feeds.models` for
one user, to see.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple
from urllib.parse import urlencode

from django.conf import settings
from django.urls import reverse

from eventbus import cell_pages
from eventbus.database.sql import fetch
from feeds import live_tickets
from feeds.models import HORIZON, RESTING, Feed
from feeds.read import here
from feeds.read.pages import Kept
from feeds.timeline import EVERYTHING, NEWEST_BY_DEFINITION
from posts.models import Fanout

SHOWN = 100

# One statement, hence one snapshot: workers that go on meanwhile cause no difference.
_COMPARE = """
WITH defined AS ({definition}), stored AS (
    SELECT post_id, author_id FROM feed_entries WHERE user_id = %(user)s ORDER BY post_id DESC LIMIT %(limit)s
)
SELECT
    coalesce(defined.id, stored.post_id) AS post_id, defined.id IS NOT NULL, stored.post_id IS NOT NULL,
    post.author_id, stored.author_id, post.content, post.data::text,
    post.created_at, post.fanout, post.deleted_event_id IS NOT NULL,
    (SELECT true FROM withdrawals WHERE withdrawals.post_id = post.id) IS NOT NULL,
    coalesce((SELECT active FROM mutes WHERE user_id = %(user)s AND muted_id = post.author_id), false),
    greatest((SELECT floor FROM feeds WHERE user_id = %(user)s), {horizon})
FROM defined FULL JOIN stored ON stored.post_id = defined.id
LEFT JOIN LATERAL (
    SELECT * FROM posts WHERE id = coalesce(defined.id, stored.post_id) OFFSET 0
) AS post ON true
ORDER BY 1 DESC
"""


class Compared(NamedTuple):
    post_id: int
    defined: bool
    stored: bool
    author_id: int | None  # of the post, if there is one
    stored_author_id: int | None
    content: str | None
    data: str | None  # JSON
    created_at: datetime | None
    fanout: int | None
    deleted: bool
    leaving: bool  # deleted, and being withdrawn from many feeds
    muted: bool  # by the user, its author
    floor: int  # of the feed, or the horizon


@dataclass(frozen=True, slots=True)
class Entry:
    """A post that is in the feed, or has a row in it, or both."""

    row: Compared

    @property
    def above_floor(self) -> bool:
        return self.row.post_id > self.row.floor

    @property
    def source(self) -> str:
        """Tell where a reader gets the post from; empty if the post is not in the feed."""
        if not self.row.defined:
            return ""
        if not self.above_floor:
            return "past the floor"
        return "pulled" if self.row.fanout == Fanout.PULL else "pushed"

    @property
    def difference(self) -> str:
        """Tell what contradicts the invariant, or nothing."""
        if not self.above_floor or self.row.leaving:
            return ""
        if self.source == "pushed" and not self.row.stored:
            return "missing: no row"
        if self.row.stored and self.source == "pulled":
            return "extra: a row of a post to be pulled"
        if self.row.stored and not self.row.defined:
            return f"extra: {self._why_not_defined}"
        if self.row.stored and self.row.stored_author_id != self.row.author_id:
            return f"stored under author {self.row.stored_author_id}"
        return ""

    @property
    def read_by_nobody(self) -> bool:
        """Tell whether this is a row that nobody reads: at or below the floor, or of a post that is
        being withdrawn.
        """
        return not self.row.defined and (not self.above_floor or self.row.leaving)

    @property
    def _why_not_defined(self) -> str:
        if self.row.author_id is None:
            return "there is no such post"
        if self.row.deleted:
            return "the post is deleted"
        return "its author is muted" if self.row.muted else "its author is not followed"


@dataclass(frozen=True, slots=True)
class Inspection:
    """What is known of a user's feed, down to the `SHOWN` newest posts and rows."""

    user_id: int
    feed: Feed | None
    entries: Sequence[Entry]
    complete: bool  # whether these are all there are
    cached: Kept

    @property
    def differences(self) -> int:
        return sum(1 for entry in self.entries if entry.difference)

    @property
    def floor_text(self) -> str:
        if self.feed is None:
            return "none: the user is not known"
        if self.feed.floor == RESTING:
            return "resting: nothing is materialised"
        return str(self.feed.floor)

    @property
    def live_address(self) -> str:
        """Return where the page hears of what is newer than it; empty without live feeds."""
        if not settings.API_FRONT:
            return ""
        newest = max((entry.row.post_id for entry in self.entries if entry.row.defined), default=0)
        query = urlencode({"since": newest, "ticket": live_tickets.issue(self.user_id)})
        return f"{cell_pages.without_prefix(reverse('live', args=[self.user_id]))}?{query}"

    def count(self, source: str) -> int:
        return sum(1 for entry in self.entries if entry.source == source)


def inspect(user_id: int) -> Inspection:
    """Compare the newest part of the user's feed with its definition. Raises `DatabaseError`.

    Costs a look-up for each account the user follows, as a read past the floor does.
    """
    entries, complete = _compare(user_id)
    feed = Feed.objects.filter(user_id=user_id).first()
    return Inspection(user_id, feed, entries, complete, here.pages.inspect(user_id))


def _compare(user_id: int) -> tuple[list[Entry], bool]:
    values = {"user": user_id, "limit": SHOWN, **EVERYTHING}
    rows = [
        Compared(*row)
        for row in fetch(_COMPARE.format(definition=NEWEST_BY_DEFINITION, horizon=HORIZON), values)
    ]
    # Below the end of either list it is not known whether the other goes on.
    ends = [_end([row for row in rows if row.defined]), _end([row for row in rows if row.stored])]
    return [Entry(row) for row in rows if row.post_id >= max(ends)], max(ends) == 0


def _end(rows: Sequence[Compared]) -> int:
    """Return the lowest post id of a list that was cut, 0 of one that is whole."""
    return rows[-1].post_id if len(rows) == SHOWN else 0
