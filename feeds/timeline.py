"""Reading a feed: keyset pages over the materialised rows, and below the floor over the join that defines the feed.

A page is cut by post id, which never changes and is unique, so posts that arrive while someone pages shift nothing.
"""

from dataclasses import dataclass
from typing import Any

from django.db import connection

from posts.models import PostRow
from posts.pagination import Position

# One statement, hence one snapshot, for the floor and the rows above it: a floor that rises meanwhile, and rows
# deleted below it, cannot open a gap between this and the join.
_MATERIALISED = """
SELECT floor, id, author_id, content, created_at
FROM (SELECT coalesce((SELECT floor FROM feeds WHERE user_id = %(user)s), 0) AS floor) AS feed
LEFT JOIN LATERAL (
    SELECT post.id, post.author_id, post.content, post.created_at
    FROM feed_entries AS entry JOIN posts AS post ON post.id = entry.post_id
    WHERE entry.user_id = %(user)s AND entry.post_id > floor AND entry.post_id {beyond} %(position)s
      AND post.deleted_event_id IS NULL
    ORDER BY entry.post_id {direction} LIMIT %(limit)s
) AS page ON true
ORDER BY id {direction}
"""

_JOIN = """
SELECT post.id, post.author_id, post.content, post.created_at
FROM (
    SELECT followee_id AS author FROM follows WHERE follower_id = %(user)s AND active UNION ALL SELECT %(user)s
) AS authors
CROSS JOIN LATERAL (
    SELECT id, author_id, content, created_at FROM posts
    WHERE author_id = author AND deleted_event_id IS NULL AND id {beyond} %(position)s AND id <= %(floor)s
    ORDER BY id {direction} LIMIT %(limit)s
) AS post
ORDER BY post.id {direction} LIMIT %(limit)s
"""


@dataclass(frozen=True, slots=True)
class _Direction:
    beyond: str
    direction: str

    def sql(self, statement: str) -> str:
        return statement.format(beyond=self.beyond, direction=self.direction)


_OLDER = _Direction("<=", "DESC")
_NEWER = _Direction(">", "ASC")


def read(user_id: int, position: Position, limit: int) -> list[PostRow]:
    """Return up to `limit` posts of the feed beyond `position`, nearest to it first.

    One query, and a second one where the page reaches below the floor.
    """
    if position.newer:
        return _read_newer(user_id, position, limit)
    values = {"user": user_id, "position": position.id, "limit": limit}
    floor, posts = _materialised(_OLDER, values)
    if len(posts) < limit and floor > 0:
        posts += _joined(_OLDER, {**values, "floor": floor, "limit": limit - len(posts)})
    return posts


def _read_newer(user_id: int, position: Position, limit: int) -> list[PostRow]:
    values: dict[str, Any] = {"user": user_id, "position": position.id, "limit": limit}
    floor, posts = _materialised(_NEWER, values)
    if position.id < floor:
        posts = _joined(_NEWER, {**values, "floor": floor}) + posts
    return posts[:limit]


def _materialised(direction: _Direction, values: dict[str, Any]) -> tuple[int, list[PostRow]]:
    with connection.cursor() as cursor:
        cursor.execute(direction.sql(_MATERIALISED), values)
        rows = cursor.fetchall()
    return rows[0][0], [PostRow(*row[1:]) for row in rows if row[1] is not None]


def _joined(direction: _Direction, values: dict[str, Any]) -> list[PostRow]:
    with connection.cursor() as cursor:
        cursor.execute(direction.sql(_JOIN), values)
        return [PostRow(*row) for row in cursor.fetchall()]
