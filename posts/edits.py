"""Edits of posts, which become the same whatever the order of events.

Content and data are a register each: of the edits that name it, the one with the highest event id
decides. An edit that comes before its post waits in `waiting_edits` until the post is stored.

Every function is called within a transaction that holds the lock of the posts' authors.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from eventbus.database.sql import bigints, execute, fetch
from eventbus.models import BEFORE_ERASURE
from posts.events import PostEdited

# A comparison with null, the event of a field that no edit names, is not true.
_APPLY = """
UPDATE posts SET
    content = CASE WHEN content_event > coalesce(content_event_id, 0) THEN new_content ELSE content END,
    content_event_id = greatest(content_event_id, content_event),
    data = CASE WHEN data_event > coalesce(data_event_id, 0) THEN new_data::jsonb ELSE data END,
    data_event_id = greatest(data_event_id, data_event)
FROM unnest(%s::bigint[], %s::bigint[], %s::text[], %s::bigint[], %s::text[], %s::bigint[])
    AS edit (post_id, author, new_content, content_event, new_data, data_event)
WHERE id = post_id AND author_id = author AND deleted_event_id IS NULL
RETURNING id
"""

# A post that is there and was not edited is deleted, or somebody else's: that edit has no effect. Nor
# has one of a post from before its author was erased.
_KEEP = f"""
INSERT INTO waiting_edits (event_id, post_id, author_id, content, changes_data, data)
SELECT event_id, post_id, author_id, content, changes_data, data::jsonb
FROM unnest(%s::bigint[], %s::bigint[], %s::bigint[], %s::text[], %s::boolean[], %s::text[])
    AS early (event_id, post_id, author_id, content, changes_data, data)
WHERE NOT EXISTS (SELECT FROM posts WHERE posts.id = early.post_id)
  AND NOT {BEFORE_ERASURE.format(user="early.author_id", id="early.post_id")}
ORDER BY 1
ON CONFLICT DO NOTHING
"""  # noqa: S608 - composed of constants
# Post by post in the index, and then out of an array that PostgreSQL cannot look into and takes to be
# short: it looks each of them up, whatever statistics say.
_TAKE = """
WITH waiting AS MATERIALIZED (
    SELECT edit.event_id FROM unnest(%s::bigint[]) AS post CROSS JOIN LATERAL (
        SELECT event_id FROM waiting_edits WHERE post_id = post ORDER BY event_id OFFSET 0
    ) AS edit
)
DELETE FROM waiting_edits WHERE event_id = ANY(ARRAY(SELECT event_id FROM waiting))
RETURNING event_id, post_id, author_id, content, changes_data, data::text
"""


@dataclass(slots=True)
class _Change:
    """What several edits of one post come to."""

    post_id: int
    author_id: int
    content: str | None = None
    content_event_id: int | None = None
    data: str | None = None
    data_event_id: int | None = None

    def add(self, edit: PostEdited) -> None:
        """Take the edit in, which is later than all before."""
        if edit.content is not None:
            self.content, self.content_event_id = edit.content, edit.event_id
        if edit.changes_data:
            self.data, self.data_event_id = edit.data, edit.event_id


def apply_edits(edits: Sequence[PostEdited]) -> None:
    """Edit the posts; keep the edits of posts that are not stored yet."""
    edited = _apply(edits)
    missing = [edit for edit in edits if edit.post_id not in edited]
    if missing:
        execute(_KEEP, _columns(missing))


def apply_waiting(post_ids: Collection[int]) -> None:
    """Edit posts that were stored just now by the edits that have waited for them, which wait no
    longer, even if a post is a tombstone.
    """
    _apply([PostEdited(*row) for row in fetch(_TAKE, [bigints(post_ids)])])


def drop_waiting(post_ids: Iterable[int]) -> None:
    """Forget the edits that have waited for posts which are deleted by now."""
    execute(_TAKE, [bigints(post_ids)])


def _apply(edits: Iterable[PostEdited]) -> set[int]:
    """Edit the posts that are there; return their ids."""
    changes = _fold(edits)
    columns: list[list[Any]] = [
        [change.post_id for change in changes],
        [change.author_id for change in changes],
        [change.content for change in changes],
        [change.content_event_id for change in changes],
        [change.data for change in changes],
        [change.data_event_id for change in changes],
    ]
    return {post_id for (post_id,) in fetch(_APPLY, columns)}


def _fold(edits: Iterable[PostEdited]) -> list[_Change]:
    changes: dict[tuple[int, int], _Change] = {}
    for edit in sorted(edits, key=lambda edit: edit.event_id):
        key = (edit.post_id, edit.author_id)
        changes.setdefault(key, _Change(*key)).add(edit)
    return list(changes.values())


def _columns(edits: Sequence[PostEdited]) -> list[list[Any]]:
    return [
        [edit.event_id for edit in edits],
        [edit.post_id for edit in edits],
        [edit.author_id for edit in edits],
        [edit.content for edit in edits],
        [edit.changes_data for edit in edits],
        [edit.data for edit in edits],
    ]
