"""The tables of feeds and follows.

`feed(u)` is defined by a join: the undeleted posts by u and by everyone u follows now. `feed_entries` only makes it
fast: the rows above `feeds.floor` of u are exactly the pushed part of that join above the floor, and nobody reads
rows at or below it.
"""

import secrets

from django.db import models

from posts.pagination import Position


class FollowQuerySet(models.QuerySet["Follow"]):
    def followers_page(self, user_id: int, position: Position, limit: int) -> list[int]:
        """Return up to `limit` followers of the user beyond `position`, nearest to it first (one index scan)."""
        return self.filter(followee_id=user_id)._page("follower_id", position, limit)

    def following_page(self, user_id: int, position: Position, limit: int) -> list[int]:
        """Return up to `limit` of those the user follows beyond `position`, nearest to it first (one index scan)."""
        return self.filter(follower_id=user_id)._page("followee_id", position, limit)

    def _page(self, column: str, position: Position, limit: int) -> list[int]:
        beyond = {f"{column}__{'gt' if position.newer else 'lte'}": position.id}
        users = self.filter(active=True, **beyond).order_by(column if position.newer else f"-{column}")
        return list(users.values_list(column, flat=True)[:limit])


class Follow(models.Model):
    """One user following another; `event_id` is the event that last changed it, and the highest one wins.

    An unfollow keeps the row inactive, so that a late or replayed follow from before it changes nothing.
    """

    pk = models.CompositePrimaryKey("follower_id", "followee_id")
    follower_id = models.BigIntegerField()
    followee_id = models.BigIntegerField()
    active = models.BooleanField(default=True, db_default=True)
    event_id = models.BigIntegerField()

    objects = FollowQuerySet.as_manager()

    class Meta:
        db_table = "follows"
        indexes = [
            # The fan-out reads the followers of an author from this index alone.
            models.Index(
                fields=["followee_id", "follower_id"],
                condition=models.Q(active=True),
                name="follows_by_followee",
            )
        ]

    def __str__(self) -> str:
        return f"{self.follower_id} → {self.followee_id}"


class Feed(models.Model):
    """One row a user: from where up the feed is materialised, and how many followers the user has."""

    user_id = models.BigIntegerField(primary_key=True)
    floor = models.BigIntegerField(default=0, db_default=0)
    follower_count = models.BigIntegerField(default=0, db_default=0)

    class Meta:
        db_table = "feeds"

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


def new_generation() -> int:
    """Return a number that no generation had before, also when PostgreSQL was emptied or restored and Redis was not."""
    return secrets.randbits(63)


class CacheState(models.Model):
    """The single row that says whether cached pages count, and of which generation; see `feeds.cache`."""

    id = models.SmallIntegerField(primary_key=True, default=1)
    generation = models.BigIntegerField(default=new_generation)
    closed_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "cache_state"
        constraints = [models.CheckConstraint(condition=models.Q(id=1), name="cache_state_single_row")]

    def __str__(self) -> str:
        return f"generation {self.generation}, {'closed' if self.closed_at else 'open'}"
