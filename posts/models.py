"""The tables of posts, and of who is hidden from whom, and their query vocabulary."""

from collections.abc import Container, Iterable, Sequence
from typing import Any, NamedTuple

from django.db import models

from eventbus.database.sql import bigints, fetch
from eventbus.ids.snowflake import EPOCH_MS, ID_BITS
from posts import edits
from posts.events import PostCreated, PostDeleted
from posts.pagination import Position


class Fanout(models.IntegerChoices):
    """How a post reaches feeds; chosen when it is stored and kept with it."""

    PUSH = 0, "push"
    PULL = 1, "pull"


# Conditions on `posts` in SQL, as its indexes have them.
ALIVE = "deleted_event_id IS NULL"
PUSHED = f"{ALIVE} AND fanout = {Fanout.PUSH}"
PULLED = f"{ALIVE} AND fanout = {Fanout.PULL}"


class PostRow(NamedTuple):
    """What is shown of a post; times as `eventbus.envelope.format_time` writes them."""

    id: int
    author_id: int
    content: str
    data: str | None  # JSON
    created_at: str
    edited_at: str | None


class FoundPost(NamedTuple):
    """A post, or the tombstone of a deleted one."""

    row: PostRow
    is_deleted: bool


# To have PostgreSQL write the time costs a tenth of making a `datetime` of it and a text of that.
_RFC_3339 = """to_char({time} AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"')"""
CREATED_AT = _RFC_3339.format(time="created_at")
# The id of an edit is its time. All of it is null for a post that was never edited.
_EDITED_MS = f"(greatest(content_event_id, data_event_id) >> {ID_BITS}) + {EPOCH_MS}"
EDITED_AT = _RFC_3339.format(time=f"to_timestamp(({_EDITED_MS}) / 1000.0)")
# What is shown of a post after its id and author, in the order of `PostRow`.
SHOWN = f"content, data::text AS data, {CREATED_AT} AS shown_at, {EDITED_AT} AS edited_at"

# Not by the ORM, which takes longer to compose this than PostgreSQL and the network take to answer
# it.
_PAGE_OF = f"""
SELECT id, author_id, {SHOWN} FROM posts
WHERE author_id = %(author)s AND {ALIVE} AND {{beyond}} LIMIT %(limit)s
"""  # noqa: S608 - composed of constants
_PAGE_OF_OLDER = _PAGE_OF.format(beyond="id <= %(id)s ORDER BY id DESC")
_PAGE_OF_NEWER = _PAGE_OF.format(beyond="id > %(id)s ORDER BY id")

_FIND = f"""
SELECT id, author_id, {SHOWN}, deleted_event_id IS NOT NULL FROM posts
WHERE id = ANY(%s::bigint[])
"""  # noqa: S608 - composed of constants

# Whether any edit waits for its post, which is nearly never: asked once a statement, where a look-up
# for each post would cost a tenth of it.
_IS_ANY_WAITING = "(SELECT true FROM waiting_edits ORDER BY event_id LIMIT 1)"

# A post from before its author was erased is a tombstone from the beginning. The array of data is
# empty where no post has any: `unnest` fills up with nulls.
_INSERT = f"""
INSERT INTO posts (id, author_id, content, created_at, fanout, data, deleted_event_id)
SELECT
    id, author_id, CASE WHEN erasure IS NULL THEN content ELSE '' END, created_at, fanout,
    CASE WHEN erasure IS NULL THEN data::jsonb END, erasure
FROM (
    SELECT new.*, (
        SELECT event_id FROM erasures WHERE user_id = author_id AND event_id > new.id
    ) AS erasure
    FROM unnest(%s::bigint[], %s::bigint[], %s::text[], %s::timestamptz[], %s::smallint[], %s::text[])
        AS new (id, author_id, content, created_at, fanout, data)
    ORDER BY 1
) AS new
ON CONFLICT (id) DO NOTHING
RETURNING id, deleted_event_id IS NULL, {_IS_ANY_WAITING}
"""  # noqa: S608 - composed of constants

# The row may not exist yet when events arrive out of order: then the tombstone alone keeps the post
# away.
_TOMBSTONE = f"""
INSERT INTO posts (id, author_id, content, created_at, fanout, deleted_event_id)
SELECT id, author_id, '', created_at, 0, event_id
FROM unnest(%s::bigint[], %s::bigint[], %s::timestamptz[], %s::bigint[]) AS gone (id, author_id, created_at, event_id)
ORDER BY 1
ON CONFLICT (id) DO UPDATE
SET content = '', data = NULL, deleted_event_id = EXCLUDED.deleted_event_id
WHERE posts.author_id = EXCLUDED.author_id AND posts.deleted_event_id IS NULL
RETURNING id, {_IS_ANY_WAITING}
"""  # noqa: S608 - composed of constants


class PostQuerySet(models.QuerySet["Post"]):
    def alive(self) -> "PostQuerySet":
        return self.filter(deleted_event_id__isnull=True)

    def page_of(self, author_id: int, position: Position, limit: int) -> list[PostRow]:
        """Return up to `limit` posts of the author beyond `position`, nearest to it first (one
        index scan).
        """
        statement = _PAGE_OF_NEWER if position.newer else _PAGE_OF_OLDER
        values = {"author": author_id, "id": position.id, "limit": limit}
        return [PostRow(*row) for row in fetch(statement, values)]

    def find(self, post_ids: Iterable[int]) -> dict[int, FoundPost]:
        """Return those of the posts that there are, or their tombstones, by id (a look-up each)."""
        found = {}
        for *row, is_deleted in fetch(_FIND, [bigints(post_ids)]):
            post = PostRow(*row)
            found[post.id] = FoundPost(post, is_deleted)
        return found

    def store(self, posts: Sequence[PostCreated], pulled: Container[int] = ()) -> set[int]:
        """Insert `posts` in one statement; return the ids that were new and are no tombstones (an
        existing row, or tombstone, stays). Edits that have waited for them take effect.

        Those of authors in `pulled` are marked to be pulled by readers, the others to be pushed.
        """
        columns: list[Any] = [
            bigints(post.post_id for post in posts),
            bigints(post.author_id for post in posts),
            [post.content for post in posts],
            [post.created_at for post in posts],
            bigints(
                (Fanout.PULL if post.author_id in pulled else Fanout.PUSH).value for post in posts
            ),
            _data_of(posts),
        ]
        rows = fetch(_INSERT, columns)
        new = {post_id for post_id, is_alive, _ in rows if is_alive}
        if _is_any_waiting(rows):
            # Of tombstones too, though these stay as they are: nothing else ends the wait for them.
            edits.apply_waiting([post_id for post_id, _, _ in rows])
        return new

    def leave_tombstones(self, deletions: Sequence[PostDeleted]) -> None:
        """Turn the posts into tombstones without content, in one statement; of a wrong author: no
        effect.
        """
        unique = {deletion.post_id: deletion for deletion in deletions}.values()
        columns: list[list[Any]] = [
            [deletion.post_id for deletion in unique],
            [deletion.author_id for deletion in unique],
            [deletion.post_created_at for deletion in unique],
            [deletion.event_id for deletion in unique],
        ]
        rows = fetch(_TOMBSTONE, columns)
        if _is_any_waiting(rows):
            edits.drop_waiting(post_id for post_id, _ in rows)


def _is_any_waiting(rows: Sequence[Sequence[Any]]) -> bool:
    """Return the last column of any row: it is the same in all."""
    return bool(rows and rows[0][-1])


def _data_of(posts: Sequence[PostCreated]) -> list[str | None]:
    """Return the data of each, and nothing at all if none has any."""
    data = [post.data for post in posts]
    return data if any(data) else []


class Post(models.Model):
    """A post, or the tombstone of a deleted one."""

    id = models.BigIntegerField(primary_key=True)
    author_id = models.BigIntegerField()
    content = models.TextField()
    data = models.JSONField(null=True)
    created_at = models.DateTimeField()
    fanout = models.SmallIntegerField(choices=Fanout, default=Fanout.PUSH, db_default=Fanout.PUSH)
    deleted_event_id = models.BigIntegerField(null=True)
    content_event_id = models.BigIntegerField(
        null=True, help_text="the edit that last changed the content"
    )
    data_event_id = models.BigIntegerField(
        null=True, help_text="the edit that last changed the data"
    )

    objects = PostQuerySet.as_manager()

    class Meta:
        db_table = "posts"
        indexes = [
            # Serves an author's list, the back-fill after a follow, and the join a feed is defined
            # by.
            models.Index(
                "author_id",
                models.F("id").desc(),
                condition=models.Q(deleted_event_id__isnull=True),
                name="posts_by_author",
            ),
            # Serves readers who merge pulled posts into their feed; pushed posts cost it nothing.
            models.Index(
                "author_id",
                models.F("id").desc(),
                condition=models.Q(deleted_event_id__isnull=True, fanout=1),
                name="posts_pulled",
            ),
        ]

    def __str__(self) -> str:
        return f"post {self.id} by {self.author_id}"

    @property
    def edited_event_id(self) -> int | None:
        """Return the last edit that changed anything, if there is one."""
        edits = [each for each in (self.content_event_id, self.data_event_id) if each is not None]
        return max(edits, default=None)


class WaitingEdit(models.Model):
    """An edit that came before its post; see `posts.edits`."""

    event_id = models.BigIntegerField(primary_key=True)
    post_id = models.BigIntegerField()
    author_id = models.BigIntegerField()
    content = models.TextField(null=True)  # noqa: DJ001 - null is an edit that does not name it
    changes_data = models.BooleanField()
    data = models.JSONField(null=True)

    class Meta:
        db_table = "waiting_edits"
        indexes = [
            models.Index(fields=["post_id", "event_id"], name="waiting_edits_by_post"),
            # What is held of a user, to show or erase it.
            models.Index(fields=["author_id", "event_id"], name="waiting_edits_by_author"),
        ]

    def __str__(self) -> str:
        return f"edit of post {self.post_id}"


_BLOCKED_WITH = """
SELECT blocked_id FROM blocks
WHERE blocker_id = %(user)s AND blocked_id = ANY(%(others)s::bigint[]) AND blocked_event_id > unblocked_event_id
UNION ALL
SELECT blocker_id FROM blocks
WHERE blocked_id = %(user)s AND blocker_id = ANY(%(others)s::bigint[]) AND blocked_event_id > unblocked_event_id
"""


class BlockQuerySet(models.QuerySet["Block"]):
    def among(self, user_id: int, others: Iterable[int]) -> set[int]:
        """Return those of `others` whom the user has blocked or who have blocked the user (a
        look-up by key each).
        """
        values = {"user": user_id, "others": bigints(set(others))}
        return {other for (other,) in fetch(_BLOCKED_WITH, values)}


class Block(models.Model):
    """What one user has last said of another: to be blocked, and to be no longer.

    Of each the highest event id is kept, so that events may come in any order; the higher of the
    two holds. 0: never said.
    """

    pk = models.CompositePrimaryKey("blocker_id", "blocked_id")
    blocker_id = models.BigIntegerField()
    blocked_id = models.BigIntegerField()
    blocked_event_id = models.BigIntegerField(default=0, db_default=0)
    unblocked_event_id = models.BigIntegerField(default=0, db_default=0)

    objects = BlockQuerySet.as_manager()

    class Meta:
        db_table = "blocks"
        indexes = [
            # For what concerns the blocked user.
            models.Index(fields=["blocked_id", "blocker_id"], name="blocks_by_blocked"),
        ]

    def __str__(self) -> str:
        return f"block of {self.blocked_id} by {self.blocker_id}"

    @property
    def in_effect(self) -> bool:
        return self.blocked_event_id > self.unblocked_event_id
