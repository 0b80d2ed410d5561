"""Fan-out: how a post reaches the feeds of its author and of their followers.

- **push** (on write): one row in the feed of each, but for the feeds that rest;
- **pull** (on read): no row at all; readers merge the post in, and their cached pages watch its author;
- **hybrid**: push for authors of fewer than `FEED_PUSH_MAX_FOLLOWERS` followers, pull for the others.

The choice is made once, when the post is stored, and kept with it. So an author who crosses the threshold, or a
changed setting, loses and doubles nothing.

Raw SQL because the rows of a whole batch must be written by one statement, sorted by the primary key: that is about
1.5 times as fast as post by post, and far from anything an ORM could do row by row.
"""

from collections.abc import Iterable, Sequence

from django.conf import settings
from django.db import connection

from eventbus import metrics
from eventbus.exceptions import InvalidEvent
from eventbus.snowflake import MAX_ID
from eventbus.sql import bigints, fetch
from posts.events import PostCreated, PostDeleted
from posts.models import Fanout, Post

NEVER = MAX_ID  # more followers than there can be

# `feed_entries` of a post can only exist once its row in `posts` does, and all changes for an author happen under
# the author's lock. So rows of a post stored in this very transaction cannot clash, and the plain form is safe;
# ON CONFLICT costs 1.3 to 1.8 times as much.
_DELIVER = """
INSERT INTO feed_entries (user_id, post_id, author_id)
SELECT follower_id, post_id, author_id
FROM unnest(%(posts)s::bigint[], %(authors)s::bigint[]) AS new (post_id, author_id)
JOIN follows ON followee_id = author_id AND active AND NOT idle
UNION ALL
SELECT author_id, post_id, author_id
FROM unnest(%(posts)s::bigint[], %(authors)s::bigint[]) AS own (post_id, author_id)
JOIN feeds ON user_id = author_id AND NOT idle
ORDER BY 1, 2
"""
_DELIVER_CAREFULLY = _DELIVER + "ON CONFLICT DO NOTHING"

# One post at a time to the followers after a given one, for authors whose followers do not fit one transaction.
_DELIVER_PART = """
WITH part AS (
    SELECT follower_id FROM follows
    WHERE followee_id = %(author)s AND active AND NOT idle AND follower_id > %(after)s
    ORDER BY follower_id LIMIT %(limit)s
), delivered AS (
    INSERT INTO feed_entries (user_id, post_id, author_id)
    SELECT follower_id, %(post)s, %(author)s FROM part
    WHERE EXISTS (SELECT FROM posts WHERE id = %(post)s AND deleted_event_id IS NULL AND fanout = 0)
    ON CONFLICT DO NOTHING
    RETURNING 1
)
SELECT (SELECT max(follower_id) FROM part), (SELECT count(*) FROM delivered)
"""

_WITHDRAW = """
DELETE FROM feed_entries
USING unnest(%s::bigint[], %s::bigint[]) AS gone (id, author)
WHERE post_id = id AND author_id = author AND user_id IN (
    SELECT follower_id FROM follows WHERE followee_id = author AND active AND NOT idle UNION ALL SELECT author
)
"""

_WITHDRAW_PART = """
WITH part AS (
    SELECT follower_id FROM follows
    WHERE followee_id = %(author)s AND active AND NOT idle AND follower_id > %(after)s
    ORDER BY follower_id LIMIT %(limit)s
), withdrawn AS (
    DELETE FROM feed_entries USING part
    WHERE user_id = part.follower_id AND post_id = %(post)s AND author_id = %(author)s
)
SELECT max(follower_id), 0 FROM part
"""

_FOLLOWER_COUNTS = "SELECT user_id, follower_count FROM feeds WHERE user_id = ANY(%s::bigint[])"

# From now on readers look for posts of these authors when they read; see `feeds.cache` for what the time is for.
_WATCH = "UPDATE feeds SET pulled_since = clock_timestamp() WHERE user_id = ANY(%s) AND pulled_since IS NULL"


def deliver(posts: Sequence[PostCreated], *, careful: bool) -> None:
    """Store `posts` and put those that are pushed into their feeds. `careful`: their rows may exist already."""
    pulled, new = _store(posts)
    targets, statement = {post.post_id: post.author_id for post in posts if post.author_id not in pulled}, _DELIVER
    if careful or len(new) < len(posts):
        targets, statement = _stored_to_push(posts), _DELIVER_CAREFULLY
    if targets:
        with connection.cursor() as cursor:
            cursor.execute(statement, {"posts": bigints(targets), "authors": bigints(targets.values())})
            metrics.fanout_rows_total.inc(cursor.rowcount)


def withdraw(deletions: Sequence[PostDeleted]) -> None:
    """Leave tombstones of the posts, and take those that were pushed out of every feed."""
    Post.objects.bury(deletions)
    pushed = _pushed(deletions)
    with connection.cursor() as cursor:
        cursor.execute(_WITHDRAW, [[d.post_id for d in pushed], [d.author_id for d in pushed]])


def deliver_part(post: PostCreated, resume_after: int | None) -> int | None:
    """Deliver one post to the next followers, in id order; return the last of them, or None when all are done.

    Each call writes at most `FEED_BATCH_MAX_ROWS` rows and may be repeated.
    """
    if resume_after is None and not _deliver_to_author(post):
        return None
    return _part(_DELIVER_PART, post, resume_after)


def _deliver_to_author(post: PostCreated) -> bool:
    """Store the post and put it into its author's own feed; tell whether it is to be pushed to the followers too."""
    _store([post])
    if not _stored_to_push([post]):
        return False
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO feed_entries (user_id, post_id, author_id) "
            "SELECT user_id, %s, user_id FROM feeds WHERE user_id = %s AND NOT idle "
            "ON CONFLICT DO NOTHING",
            [post.post_id, post.author_id],
        )
    return True


def withdraw_part(deletion: PostDeleted, resume_after: int | None) -> int | None:
    """Take one post out of the next followers' feeds; return the last of them, or None when all are done."""
    if resume_after is None:
        Post.objects.bury([deletion])
        if not _pushed([deletion]):
            return None
        with connection.cursor() as cursor:
            cursor.execute(
                "DELETE FROM feed_entries WHERE user_id = %s AND post_id = %s AND author_id = %s",
                [deletion.author_id, deletion.post_id, deletion.author_id],
            )
    return _part(_WITHDRAW_PART, deletion, resume_after)


def _part(statement: str, fact: PostCreated | PostDeleted, resume_after: int | None) -> int | None:
    values = {
        "author": fact.author_id,
        "post": fact.post_id,
        "after": resume_after or 0,
        "limit": settings.FEED_BATCH_MAX_ROWS,
    }
    with connection.cursor() as cursor:
        cursor.execute(statement, values)
        part: tuple[int | None, int] = cursor.fetchone()
    metrics.fanout_rows_total.inc(part[1])
    return part[0]


def pulled_from() -> int:
    """Return the number of followers from which on new posts of an author are left to be pulled by readers."""
    match settings.FEED_STRATEGY:
        case "pull":
            return 0
        case "hybrid":
            threshold: int = settings.FEED_PUSH_MAX_FOLLOWERS
            return threshold
    return NEVER


def follower_counts(author_ids: Iterable[int]) -> dict[int, int]:
    """Return how many followers each author has; authors without a row have none and are left out."""
    return dict(fetch(_FOLLOWER_COUNTS, [bigints(set(author_ids))]))


def _store(posts: Sequence[PostCreated]) -> tuple[set[int], set[int]]:
    """Store the posts, each with how it travels; return the authors who are pulled, and the ids that were new."""
    pulled = _pulled_authors({post.author_id for post in posts})
    new = Post.objects.store(posts, pulled)
    if pulled:
        with connection.cursor() as cursor:
            cursor.execute(_WATCH, [sorted(pulled)])
    return pulled, new


def _pulled_authors(author_ids: set[int]) -> set[int]:
    threshold = pulled_from()
    if threshold == NEVER:
        return set()
    counts = follower_counts(author_ids)
    return {author_id for author_id in author_ids if counts.get(author_id, 0) >= threshold}


def _stored_to_push(posts: Sequence[PostCreated]) -> dict[int, int]:
    """Return author by id of those of `posts` that are pushed and not deleted. Raises `InvalidEvent` on foreign ids."""
    stored = Post.objects.in_bulk([post.post_id for post in posts])
    for post in posts:
        if stored[post.post_id].author_id != post.author_id:
            raise InvalidEvent(f"Post {post.post_id} belongs to another author.")
    return {
        post.id: post.author_id
        for post in stored.values()
        if post.deleted_event_id is None and post.fanout == Fanout.PUSH
    }


def _pushed(deletions: Sequence[PostDeleted]) -> list[PostDeleted]:
    """Return the deletions of posts that may have rows in feeds."""
    pushed = Post.objects.filter(id__in=[deletion.post_id for deletion in deletions], fanout=Fanout.PUSH)
    ids = set(pushed.values_list("id", flat=True))
    return [deletion for deletion in deletions if deletion.post_id in ids]
