"""Fan-out: how a post reaches the feeds of its author and of their followers.

- **push** (on write): one row in the feed of each, but for the feeds that rest;
- **pull** (on read): no row at all; readers merge the post in, and their cached pages watch its
  author;
- **hybrid**: push for authors of fewer than `FEED_PUSH_MAX_FOLLOWERS` followers, pull for the
  others.

The choice is made once, when the post is stored, and kept with it. So an author who crosses the
threshold, or a changed setting, loses and doubles nothing.

Posts at or below the horizon get no rows: nothing is materialised there.

Raw SQL because the rows of a whole batch must be written by one statement, sorted by the primary
key: that is about 1.5 times as fast as post by post, and far from anything an ORM could do row by
row.
"""

from collections.abc import Iterable, Sequence

from django.conf import settings

from eventbus import metrics
from eventbus.database import locks
from eventbus.database.current import atomic
from eventbus.database.sql import bigints, execute, fetch
from eventbus.exceptions import InvalidEvent
from eventbus.ids.snowflake import MAX_ID
from feeds.models import HORIZON, TO_DELIVER, Withdrawal
from posts.events import PostCreated, PostDeleted
from posts.models import PUSHED, Fanout, Post

NEVER = MAX_ID  # more followers than there can be

# `feed_entries` of a post can only exist once its row in `posts` does, and all changes for an
# author happen under the author's lock. So rows of a post stored in this very transaction cannot
# clash, and the plain form is safe; ON CONFLICT costs 1.3 to 1.8 times as much.
_DELIVER = f"""
INSERT INTO feed_entries (user_id, post_id, author_id)
SELECT follower_id, post_id, author_id
FROM unnest(%(posts)s::bigint[], %(authors)s::bigint[]) AS new (post_id, author_id)
JOIN follows ON followee_id = author_id AND {TO_DELIVER}
WHERE post_id > {HORIZON}
UNION ALL
SELECT author_id, post_id, author_id
FROM unnest(%(posts)s::bigint[], %(authors)s::bigint[]) AS own (post_id, author_id)
JOIN feeds ON user_id = author_id AND NOT idle
WHERE post_id > {HORIZON}
ORDER BY 1, 2
"""  # noqa: S608 - composed of constants
_DELIVER_CAREFULLY = _DELIVER + "ON CONFLICT DO NOTHING"

# One post at a time to the followers after a given one, for authors whose followers do not fit one
# transaction.
_DELIVER_PART = f"""
WITH part AS (
    SELECT follower_id FROM follows
    WHERE followee_id = %(author)s AND {TO_DELIVER} AND follower_id > %(after)s
    ORDER BY follower_id LIMIT %(limit)s
), delivered AS (
    INSERT INTO feed_entries (user_id, post_id, author_id)
    SELECT follower_id, %(post)s, %(author)s FROM part
    WHERE %(post)s > {HORIZON}
      AND EXISTS (SELECT FROM posts WHERE id = %(post)s AND {PUSHED})
    ON CONFLICT DO NOTHING
    RETURNING 1
)
SELECT (SELECT max(follower_id) FROM part), (SELECT count(*) FROM delivered)
"""  # noqa: S608 - composed of constants
_DELIVER_TO_AUTHOR = f"""
INSERT INTO feed_entries (user_id, post_id, author_id)
SELECT user_id, %(post)s, user_id FROM feeds WHERE user_id = %(author)s AND NOT idle AND %(post)s > {HORIZON}
ON CONFLICT DO NOTHING
"""  # noqa: S608 - composed of constants

# Rows are deleted by their whole key. That of the post is there as a literal too, so that
# PostgreSQL sees which partitions it need not plan for; and the pairs come out of an array that it
# cannot look into and takes to be short, so that it looks each of them up whatever statistics say,
# and never reads a partition to find a few thousand rows. They come in the order of partitions:
# nobody else deletes rows of these authors, so no order is needed for the locks.
_WITHDRAW = f"""
WITH pairs AS MATERIALIZED (
    SELECT follower_id AS reader, id AS post
    FROM unnest(%(posts)s::bigint[], %(authors)s::bigint[]) AS gone (id, author)
    JOIN follows ON followee_id = author AND {TO_DELIVER}
    UNION ALL
    SELECT author, id FROM unnest(%(posts)s::bigint[], %(authors)s::bigint[]) AS gone (id, author)
    ORDER BY 2, 1
)
DELETE FROM feed_entries
USING (
    SELECT unnest(ARRAY(SELECT reader FROM pairs)) AS reader, unnest(ARRAY(SELECT post FROM pairs)) AS post
) AS pair
WHERE user_id = reader AND post_id = post AND post_id = ANY(%(posts)s::bigint[])
"""  # noqa: S608 - composed of constants
_WITHDRAW_PART = f"""
WITH part AS MATERIALIZED (
    SELECT follower_id FROM follows
    WHERE followee_id = %(author)s AND {TO_DELIVER} AND follower_id > %(after)s
    ORDER BY follower_id LIMIT %(limit)s
), withdrawn AS (
    DELETE FROM feed_entries USING (SELECT unnest(ARRAY(SELECT follower_id FROM part)) AS reader) AS readers
    WHERE user_id = reader AND post_id = %(post)s
)
SELECT max(follower_id), count(*) FROM part
"""  # noqa: S608 - composed of constants
# Of many posts PostgreSQL is told the range alone: a list would be looked into at each look-up.
_REMOVE = """
DELETE FROM feed_entries
USING (
    SELECT unnest((SELECT %(readers)s::bigint[])) AS reader, unnest((SELECT %(posts)s::bigint[])) AS post
) AS pair
WHERE user_id = reader AND post_id = post AND post_id BETWEEN %(lowest)s AND %(highest)s
"""

_FOLLOWER_COUNTS = "SELECT user_id, follower_count FROM feeds WHERE user_id = ANY(%s::bigint[])"

# From now on readers look for posts of these authors when they read; see `feeds.read.pages` for
# what the time is for.
_WATCH = "UPDATE feeds SET pulled_since = clock_timestamp() WHERE user_id = ANY(%s) AND pulled_since IS NULL"


def deliver(posts: Sequence[PostCreated], *, careful: bool) -> None:
    """Store `posts` and put those that are pushed into their feeds.

    `careful`: their rows may exist already.
    """
    pulled, new = _store(posts)
    targets, statement = (
        {post.post_id: post.author_id for post in posts if post.author_id not in pulled},
        _DELIVER,
    )
    if careful or len(new) < len(posts):
        targets, statement = _stored_to_push(posts), _DELIVER_CAREFULLY
    if targets:
        written = execute(
            statement, {"posts": bigints(targets), "authors": bigints(targets.values())}
        )
        metrics.fanout_rows_total.inc(written)


def withdraw(deletions: Sequence[PostDeleted]) -> None:
    """Leave tombstones of the posts, and take those that were pushed out of every feed."""
    Post.objects.leave_tombstones(deletions)
    if pushed := _pushed(deletions):
        execute(_WITHDRAW, {"posts": bigints(pushed), "authors": bigints(pushed.values())})


def withdraw_later(deletion: PostDeleted) -> None:
    """Leave a tombstone, and have the post taken out of every feed bit by bit, by `withdraw_part`.

    It is in no feed any more: readers pass over a row without a post.
    """
    Post.objects.leave_tombstones([deletion])
    for post_id, author_id in _pushed([deletion]).items():
        Withdrawal.objects.get_or_create(post_id=post_id, defaults={"author_id": author_id})


@atomic()
def withdraw_part() -> bool:
    """Take a post that is being withdrawn out of the next feeds; return whether there was one that
    nobody is at.

    Deletes at most `FEED_BATCH_MAX_ROWS` rows, and keeps no author's events waiting. Raises
    `DatabaseError`.
    """
    locks.join_workers()
    withdrawal = Withdrawal.objects.select_for_update(skip_locked=True).order_by("post_id").first()
    if withdrawal is None:
        return False
    limit = settings.FEED_BATCH_MAX_ROWS
    if withdrawal.resume_after == 0:
        remove([(withdrawal.author_id, withdrawal.post_id)])
    values = {"author": withdrawal.author_id, "post": withdrawal.post_id}
    [(last, count)] = fetch(
        _WITHDRAW_PART, {**values, "after": withdrawal.resume_after, "limit": limit}
    )
    if count < limit:
        withdrawal.delete()
    else:
        withdrawal.resume_after = last
        withdrawal.save()
    return True


def remove(entries: Sequence[tuple[int, int]]) -> None:
    """Take posts out of feeds: `entries` are pairs of user and post."""
    if not entries:
        return
    posts = [post for _, post in entries]
    values = {
        "readers": bigints(user for user, _ in entries),
        "posts": bigints(posts),
        "lowest": min(posts),
        "highest": max(posts),
    }
    execute(_REMOVE, values)


def deliver_part(post: PostCreated, resume_after: int | None) -> int | None:
    """Deliver one post to the next followers, in id order; return the last of them, or None when
    all are done.

    Each call writes at most `FEED_BATCH_MAX_ROWS` rows and may be repeated.
    """
    if resume_after is None and not _deliver_to_author(post):
        return None
    values = {
        "author": post.author_id,
        "post": post.post_id,
        "after": resume_after or 0,
        "limit": settings.FEED_BATCH_MAX_ROWS,
    }
    last: int | None
    [(last, written)] = fetch(_DELIVER_PART, values)
    metrics.fanout_rows_total.inc(written)
    return last


def _deliver_to_author(post: PostCreated) -> bool:
    """Store the post and put it into its author's own feed; tell whether it is to be pushed to the
    followers too.
    """
    _store([post])
    if not _stored_to_push([post]):
        return False
    execute(_DELIVER_TO_AUTHOR, {"post": post.post_id, "author": post.author_id})
    return True


def pulled_from() -> int:
    """Return the number of followers from which on new posts of an author are left to be pulled by
    readers.
    """
    match settings.FEED_STRATEGY:
        case "pull":
            return 0
        case "hybrid":
            threshold: int = settings.FEED_PUSH_MAX_FOLLOWERS
            return threshold
    return NEVER


def follower_counts(author_ids: Iterable[int]) -> dict[int, int]:
    """Return how many followers each author has; authors without a row have none and are left
    out.
    """
    return dict(fetch(_FOLLOWER_COUNTS, [bigints(set(author_ids))]))


def _store(posts: Sequence[PostCreated]) -> tuple[set[int], set[int]]:
    """Store the posts, each with how it travels; return the authors who are pulled, and the ids
    that were new.
    """
    pulled = _pulled_authors({post.author_id for post in posts})
    new = Post.objects.store(posts, pulled)
    if pulled:
        execute(_WATCH, [sorted(pulled)])
    return pulled, new


def _pulled_authors(author_ids: set[int]) -> set[int]:
    threshold = pulled_from()
    if threshold == NEVER:
        return set()
    counts = follower_counts(author_ids)
    return {author_id for author_id in author_ids if counts.get(author_id, 0) >= threshold}


def _stored_to_push(posts: Sequence[PostCreated]) -> dict[int, int]:
    """Return author by id of those of `posts` that are pushed and not deleted.

    Raises `InvalidEvent` on foreign ids.
    """
    stored = Post.objects.in_bulk([post.post_id for post in posts])
    for post in posts:
        if stored[post.post_id].author_id != post.author_id:
            raise InvalidEvent(f"Post {post.post_id} belongs to another author.")
    return {
        post.id: post.author_id
        for post in stored.values()
        if post.deleted_event_id is None and post.fanout == Fanout.PUSH
    }


def _pushed(deletions: Sequence[PostDeleted]) -> dict[int, int]:
    """Return author by id of the posts that may have rows in feeds; of a post of somebody else
    nothing is deleted.
    """
    pushed = Post.objects.filter(
        id__in=[deletion.post_id for deletion in deletions], fanout=Fanout.PUSH
    )
    authors = dict(pushed.values_list("id", "author_id"))
    return {
        deletion.post_id: deletion.author_id
        for deletion in deletions
        if authors.get(deletion.post_id) == deletion.author_id
    }
