"""The tables of feeds and follows.

`feed(u)` is defined by a join: the undeleted posts by u and by everyone u follows now and has not
muted. `feed_entries` only makes it fast: the rows above the floor of u are exactly the pushed part
of that join above the floor, and nobody reads rows at or below it. The floor is `feeds.floor` or
the `Horizon`, whichever is higher. A feed whose reader stays away rests: its floor is `RESTING`,
and the fan-out leaves it out.
"""

import secrets
from collections.abc import Collection
from datetime import timedelta
from typing import NamedTuple

from django.conf import settings
from django.contrib.postgres.fields import ArrayField
from django.db import models
from django.db.models.functions import Now
from django.utils import timezone

from eventbus import cells
from eventbus.cellmap import Slots
from eventbus.database.sql import bigints, execute, fetch
from eventbus.ids.snowflake import MAX_ID
from posts.pagination import Position

CLOCK_SKEW_SECONDS = 60
RESTING = MAX_ID  # the floor of a feed of which nothing is materialised

# Conditions on `follows` in SQL: for those whose posts are in the follower's feed, and for those
# whom the fan-out writes for, as the index has it.
IN_FEED = "active AND NOT muted"
TO_DELIVER = "active AND NOT idle AND NOT muted"

# What blocks say of the pairs of `follows` that a statement reads, or of others named likewise.
BLOCKS_OF = """
LEFT JOIN blocks AS one_way ON one_way.blocker_id = {follower} AND one_way.blocked_id = {followee}
LEFT JOIN blocks AS other_way ON other_way.blocker_id = {followee} AND other_way.blocked_id = {follower}
"""
# The same of few pairs: each is looked up by its key, whatever statistics say of the table.
BLOCKS_OF_PAIR = """
LEFT JOIN LATERAL (
    SELECT * FROM blocks WHERE blocker_id = follower AND blocked_id = followee OFFSET 0
) AS one_way ON true
LEFT JOIN LATERAL (
    SELECT * FROM blocks WHERE blocker_id = followee AND blocked_id = follower OFFSET 0
) AS other_way ON true
"""
BLOCKS_OF_FOLLOW = BLOCKS_OF.format(follower="follows.follower_id", followee="follows.followee_id")
BLOCKED = (
    "(coalesce(one_way.blocked_event_id > one_way.unblocked_event_id, false)"
    " OR coalesce(other_way.blocked_event_id > other_way.unblocked_event_id, false))"
)
# An import has the id 0, which is before every event but not before a block that never was.
LAST_BLOCK = (
    "greatest(nullif(one_way.blocked_event_id, 0), nullif(other_way.blocked_event_id, 0), -1)"
)
LATER_THAN_BLOCKS = f"follows.event_id > {LAST_BLOCK}"

# Those whom `{user}`, an expression, follows or is, and whose posts may have to be pulled.
PULLED_BY = f"""
SELECT followee_id FROM follows JOIN feeds ON user_id = followee_id AND pulled_since IS NOT NULL
WHERE follower_id = {{user}} AND {IN_FEED}
UNION ALL
SELECT user_id FROM feeds WHERE user_id = {{user}} AND pulled_since IS NOT NULL
"""  # noqa: S608 - composed of constants
_PULLED_BY_ONE = PULLED_BY.format(user="%(user)s")


# Authors whose posts are pulled, and deleted posts: what there is to know after each batch, in one
# round trip.
_WATCHED = """
SELECT user_id, true, pulled_since < %(oldest_page)s FROM feeds
WHERE user_id = ANY(%(authors)s::bigint[]) AND pulled_since IS NOT NULL
UNION ALL
SELECT id, false, false FROM posts
WHERE id = ANY(%(posts)s::bigint[]) AND deleted_event_id IS NOT NULL
"""

_FOLLOWERS_OF = """
SELECT follower_id FROM follows WHERE followee_id = %(user)s AND active AND follower_id {compare} %(id)s AND {also}
ORDER BY follower_id {direction} LIMIT %(limit)s
"""
# The user as a range of one: an equal sign would let an index on followees pass for being in order.
_FOLLOWED_BY = """
SELECT followee_id FROM follows
WHERE (follower_id, followee_id) {compare} (%(user)s, %(id)s) AND active
  AND follower_id >= %(user)s AND follower_id <= %(user)s
ORDER BY follower_id {direction}, followee_id {direction} LIMIT %(limit)s
"""


class FollowQuerySet(models.QuerySet["Follow"]):
    def followers_page(self, user_id: int, position: Position, limit: int) -> list[int]:
        """Return up to `limit` followers of the user beyond `position`, nearest to it first (one
        index scan in each cell).

        Each follower is told by the cell that serves them, however many hold them, so a page is the
        same whichever process reads it. Raises `DatabaseError` also where a single cell is away.
        """
        found: list[int] = []
        for cell in cells.every().values():
            with cells.on(cell):
                told_here = cells.serves_sql("follower_id")
                found += users_beyond(_FOLLOWERS_OF, user_id, position, limit, told_here)
        return sorted(found, reverse=not position.newer)[:limit]

    def following_page(self, user_id: int, position: Position, limit: int) -> list[int]:
        """Return up to `limit` of those the user follows beyond `position`, nearest to it first
        (one index scan).
        """
        return users_beyond(_FOLLOWED_BY, user_id, position, limit)

    def pulled_by(self, user_id: int) -> list[int]:
        """Return those the user follows, or is, whose posts may have to be pulled (one look-up a
        followee).
        """
        return [author for (author,) in fetch(_PULLED_BY_ONE, {"user": user_id})]


def users_beyond(
    statement: str, user_id: int, position: Position, limit: int, also: str = "true"
) -> list[int]:
    """Return up to `limit` users beyond `position`, nearest to it first: `statement` has gaps for
    `compare` and `direction`, and if need be for a condition, and the values `user`, `id` and
    `limit`.
    """
    compare, direction = (">", "ASC") if position.newer else ("<=", "DESC")
    values = {"user": user_id, "id": position.id, "limit": limit}
    rows = fetch(statement.format(compare=compare, direction=direction, also=also), values)
    return [user for (user,) in rows]


class Follow(models.Model):
    """One user following another; `event_id` is the event that last changed it, and the highest one
    wins.

    An unfollow keeps the row inactive, so that a late or replayed follow from before it changes
    nothing; so does a block, which ends the follows from before it. One that came after a block in
    effect is `held`: it becomes active when the block is lifted (`feeds.blocks`). `idle` repeats
    `feeds.idle` of the follower and `muted` what `mutes` says of the pair, so that the fan-out finds
    whom to write for in one index.
    """

    pk = models.CompositePrimaryKey("follower_id", "followee_id")
    follower_id = models.BigIntegerField()
    followee_id = models.BigIntegerField()
    active = models.BooleanField(default=True, db_default=True)
    held = models.BooleanField(default=False, db_default=False)
    idle = models.BooleanField(default=False, db_default=False)
    muted = models.BooleanField(default=False, db_default=False)
    event_id = models.BigIntegerField()

    objects = FollowQuerySet.as_manager()

    class Meta:
        db_table = "follows"
        indexes = [
            models.Index(
                fields=["followee_id", "follower_id"],
                condition=models.Q(active=True),
                name="follows_by_followee",
            ),
            # The fan-out reads the followers to write for from this index alone.
            models.Index(
                fields=["followee_id", "follower_id"],
                condition=models.Q(active=True, idle=False, muted=False),
                name="follows_to_deliver",
            ),
            # An erasure finds those who once followed in this one.
            models.Index(
                fields=["followee_id", "follower_id"],
                condition=models.Q(active=False),
                name="follows_ended",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.follower_id} → {self.followee_id}"


class Mute(models.Model):
    """One user's wish not to see the posts of another; the highest event id wins, as of follows.

    It is kept whether or not the one follows the other, and a lifted one inactive.
    """

    pk = models.CompositePrimaryKey("user_id", "muted_id")
    user_id = models.BigIntegerField()
    muted_id = models.BigIntegerField()
    active = models.BooleanField()
    event_id = models.BigIntegerField()

    class Meta:
        db_table = "mutes"
        indexes = [
            # For what concerns the muted user, such as an erasure.
            models.Index(fields=["muted_id", "user_id"], name="mutes_by_muted"),
        ]

    def __str__(self) -> str:
        return f"{self.user_id} mutes {self.muted_id}"


# The feeds of those whom another cell holds rest from the start.
_ENSURE = """
INSERT INTO feeds (user_id, idle, floor)
SELECT id, id = ANY(%(strangers)s::bigint[]), CASE WHEN id = ANY(%(strangers)s::bigint[]) THEN %(resting)s ELSE 0 END
FROM unnest(%(users)s::bigint[]) AS new (id)
WHERE (SELECT true FROM feeds WHERE user_id = id) IS NULL
ORDER BY 1
ON CONFLICT DO NOTHING
"""


# Who reads waits for nobody: imports and the walk hold many rows for long.
_NOTE_READ = """
UPDATE feeds SET last_read_at = now(), rebuild_wanted = floor = %s
WHERE user_id = (SELECT user_id FROM feeds WHERE user_id = %s FOR UPDATE SKIP LOCKED)
RETURNING floor
"""


class Watched(NamedTuple):
    """What has to be known of authors and their posts to make pages void and announce the posts."""

    authors: set[int]  # those whom cached pages watch
    by_every_page: set[int]  # and of these, those whom all their readers' pages do
    deleted_posts: set[int]


class FeedQuerySet(models.QuerySet["Feed"]):
    def ensure(self, user_ids: Collection[int], held: Slots) -> None:
        """Give each user a row; in id order, so that workers cannot deadlock. The feed of one whose
        slot is not held rests.
        """
        strangers = cells.outside(held, user_ids)
        execute(
            _ENSURE,
            {"users": bigints(user_ids), "strangers": bigints(strangers), "resting": RESTING},
        )

    def note_read(self, user_id: int) -> int | None:
        """Remember that the feed is read, and that it is to be materialised if it rests; return its
        floor.

        None: there is no such feed, or someone holds its row.
        """
        rows = fetch(_NOTE_READ, [RESTING, user_id])
        return rows[0][0] if rows else None

    def watched_among(self, author_ids: Collection[int], post_ids: Collection[int] = ()) -> Watched:
        """Return which of the authors cached pages watch, and in the same question which of the
        posts are deleted (a look-up each).

        A page cached before an author was pulled for the first time does not watch them, but no
        page lives as long as `FEED_CACHE_MAX_TTL` seconds, whatever the setting was when it was
        made.
        """
        oldest_page = timezone.now() - timedelta(
            seconds=settings.FEED_CACHE_MAX_TTL + CLOCK_SKEW_SECONDS
        )
        values = {
            "authors": bigints(author_ids),
            "posts": bigints(post_ids),
            "oldest_page": oldest_page,
        }
        watched = Watched(set(), set(), set())
        for found_id, is_author, is_old in fetch(_WATCHED, values):
            if not is_author:
                watched.deleted_posts.add(found_id)
                continue
            watched.authors.add(found_id)
            if is_old:
                watched.by_every_page.add(found_id)
        return watched


class Feed(models.Model):
    """One row a user: what of the feed is materialised, when it was last read, and what the user is
    as an author.
    """

    user_id = models.BigIntegerField(primary_key=True)
    floor = models.BigIntegerField(
        default=0, db_default=0, help_text="the feed is materialised above this post id"
    )
    idle = models.BooleanField(
        default=False, db_default=False, help_text="the fan-out leaves this feed out"
    )
    last_read_at = models.DateTimeField(
        db_default=Now(), help_text="at most an hour behind the last read"
    )
    rebuild_wanted = models.BooleanField(default=False, db_default=False)
    follower_count = models.BigIntegerField(default=0, db_default=0)
    pulled_since = models.DateTimeField(
        null=True, help_text="from when on posts of this author may be left to be pulled by readers"
    )

    seen_post_id = models.BigIntegerField(
        null=True, help_text="the user has seen the feed up to this post id"
    )

    objects = FeedQuerySet.as_manager()

    class Meta:
        db_table = "feeds"
        indexes = [
            models.Index(
                fields=["user_id"],
                condition=models.Q(pulled_since__isnull=False),
                name="feeds_pulled",
            ),
            models.Index(
                fields=["user_id"], condition=models.Q(rebuild_wanted=True), name="feeds_to_rebuild"
            ),
        ]
        permissions = [("erase_user", "Can erase a user")]

    def __str__(self) -> str:
        return f"feed of {self.user_id}"


class FeedEntry(models.Model):
    """A post in a user's feed. No foreign keys and no second index: this is where the writes go."""

    pk = models.CompositePrimaryKey("user_id", "post_id")
    user_id = models.BigIntegerField()
    post_id = models.BigIntegerField()
    author_id = models.BigIntegerField()

    class Meta:
        db_table = "feed_entries"

    def __str__(self) -> str:
        return f"post {self.post_id} in the feed of {self.user_id}"


# The horizon within a statement, and so of the same snapshot as the floor and the rows it is
# compared with.
HORIZON = "(SELECT coalesce(max(post_id), 0) FROM feed_horizon)"
# The floor of a row of `feeds`, or the horizon: what is materialised is above it.
FLOOR = f"greatest(floor, {HORIZON})"


class Horizon(models.Model):
    """The single row that says up to which post id nothing is materialised, in whoever's feed; see
    `feeds.partitions`.

    `starts` are where the partitions that have begun start, lowest first: a hint for readers, right
    or not.
    """

    id = models.SmallIntegerField(primary_key=True, default=1)
    post_id = models.BigIntegerField(default=0, db_default=0)
    starts = ArrayField(models.BigIntegerField(), default=list, db_default=[])
    keeper_due_at = models.DateTimeField(
        db_default=Now(), help_text="nobody changes the partitions before"
    )
    dropping = models.CharField(
        max_length=63, blank=True, default="", db_default="", help_text="a partition"
    )

    class Meta:
        db_table = "feed_horizon"
        constraints = [
            models.CheckConstraint(condition=models.Q(id=1), name="feed_horizon_single_row")
        ]

    def __str__(self) -> str:
        return f"nothing is materialised up to post {self.post_id}"


class Withdrawal(models.Model):
    """A deleted post whose rows are still to be taken out of more feeds than fit one
    transaction.
    """

    post_id = models.BigIntegerField(primary_key=True)
    author_id = models.BigIntegerField()
    resume_after = models.BigIntegerField(
        default=0, db_default=0, help_text="the last follower who is done"
    )

    class Meta:
        db_table = "withdrawals"
        indexes = [models.Index(fields=["author_id"], name="withdrawals_by_author")]

    def __str__(self) -> str:
        return f"withdrawal of post {self.post_id}"


class Housekeeping(models.Model):
    """The single row that says where the walk over all feeds stands; see `feeds.housekeeping`."""

    id = models.SmallIntegerField(primary_key=True, default=1)
    last_user_id = models.BigIntegerField(default=0)
    due_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "housekeeping"
        constraints = [
            models.CheckConstraint(condition=models.Q(id=1), name="housekeeping_single_row")
        ]

    def __str__(self) -> str:
        return f"walked up to {self.last_user_id}"


def new_generation() -> int:
    """Return a number that no generation had before, also when PostgreSQL was emptied or restored
    and Redis was not.
    """
    return secrets.randbits(63)


class CacheState(models.Model):
    """The single row that says whether cached pages count, and which generation on which Redis
    (`feeds.read.era`).
    """

    id = models.SmallIntegerField(primary_key=True, default=1)
    generation = models.BigIntegerField(default=new_generation)
    run_id = models.CharField(
        max_length=64,
        default="",
        db_default="",
        blank=True,
        help_text="the Redis that counts; empty: the next that answers",
    )
    closed_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "cache_state"
        constraints = [
            models.CheckConstraint(condition=models.Q(id=1), name="cache_state_single_row")
        ]

    def __str__(self) -> str:
        return f"generation {self.generation}, {'closed' if self.closed_at else 'open'}"
