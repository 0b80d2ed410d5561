"""Everything that is held about a user, as JSON lines.

Each line is an object whose `kind` says what it tells; the last one is of kind `end`, without which
the export broke off. It is read piece by piece, each by one query of bounded size in the order of a
key, so neither memory nor a transaction grows with what a user has.
"""

from collections.abc import Iterator
from datetime import datetime
from typing import Any, NamedTuple

import orjson

from eventbus import cells
from eventbus.cells import Cell
from eventbus.database.sql import as_bytes, fetch
from eventbus.deadletters import erasing
from eventbus.deadletters.payloads import pretty
from eventbus.envelope import format_time
from eventbus.ids.snowflake import time_of
from feeds.events import UserBlocked, UserMuted, UserUnblocked, UserUnmuted
from posts.models import ALIVE, SHOWN

LINES_A_PIECE = 200
WALKED_A_PIECE = 20_000

# What others said of the user by these is told to nobody but them.
DISCREET = (UserMuted.TYPE, UserUnmuted.TYPE, UserBlocked.TYPE, UserUnblocked.TYPE)


class Section(NamedTuple):
    """The rows of one kind: `statement` reads those after a key, which is the first column.

    `columns` name what it reads.
    """

    kind: str
    columns: tuple[str, ...]
    statement: str
    first_key: int | str = 0
    by_follower: bool = False  # each cell has those of the followers that it serves


SECTIONS = (
    Section(
        "user",
        ("user_id", "last_read_at", "seen_post_id", "follower_count", "floor", "pulled_since"),
        """
        SELECT user_id, last_read_at, seen_post_id, follower_count, floor, pulled_since FROM feeds
        WHERE user_id = %(user)s AND user_id > %(after)s LIMIT %(limit)s
        """,
    ),
    Section(
        "erasure",
        ("user_id", "event_id", "finished_at"),
        """
        SELECT user_id, event_id, finished_at FROM erasures
        WHERE user_id = %(user)s AND user_id > %(after)s LIMIT %(limit)s
        """,
    ),
    Section(
        "post",
        ("id", "content", "data", "created_at", "edited_at"),
        f"""
        SELECT id, {SHOWN} FROM posts
        WHERE author_id = %(user)s AND {ALIVE} AND id > %(after)s ORDER BY id LIMIT %(limit)s
        """,  # noqa: S608 - composed of constants
    ),
    Section(
        "waiting_edit",
        ("event_id", "post_id", "content", "changes_data", "data"),
        """
        SELECT event_id, post_id, content, changes_data, data::text FROM waiting_edits
        WHERE author_id = %(user)s AND event_id > %(after)s ORDER BY event_id LIMIT %(limit)s
        """,
    ),
    Section(
        "follows",
        ("user_id", "active", "event_id"),
        """
        SELECT followee_id, active, event_id FROM follows
        WHERE follower_id = %(user)s AND followee_id > %(after)s ORDER BY followee_id LIMIT %(limit)s
        """,
    ),
    Section(
        "follower",
        ("user_id", "event_id"),
        """
        SELECT follower_id, event_id FROM follows
        WHERE followee_id = %(user)s AND active AND follower_id > %(after)s AND {served}
        ORDER BY follower_id LIMIT %(limit)s
        """,
        by_follower=True,
    ),
    Section(
        "former_follower",
        ("user_id", "event_id"),
        """
        SELECT follower_id, event_id FROM follows
        WHERE followee_id = %(user)s AND NOT active AND follower_id > %(after)s AND {served}
        ORDER BY follower_id LIMIT %(limit)s
        """,
        by_follower=True,
    ),
    Section(
        "mutes",
        ("user_id", "active", "event_id"),
        """
        SELECT muted_id, active, event_id FROM mutes
        WHERE user_id = %(user)s AND muted_id > %(after)s ORDER BY muted_id LIMIT %(limit)s
        """,
    ),
    Section(
        "blocks",
        ("user_id", "active", "event_id"),
        """
        SELECT blocked_id, blocked_event_id > unblocked_event_id, greatest(blocked_event_id, unblocked_event_id)
        FROM blocks
        WHERE blocker_id = %(user)s AND blocked_id > %(after)s ORDER BY blocked_id LIMIT %(limit)s
        """,
    ),
    Section(
        "idempotency_key",
        ("key", "event_id", "object_id", "created_at"),
        """
        SELECT key, event_id, object_id, created_at FROM idempotency_keys
        WHERE user_id = %(user)s AND key > %(after)s ORDER BY key LIMIT %(limit)s
        """,
        first_key="",
    ),
)

# These have no index by user and are looked through.
_EVENTS = """
WITH chunk AS MATERIALIZED (
    SELECT event_id, actor_id, type, processed_at FROM processed_events
    WHERE event_id > %(after)s ORDER BY event_id LIMIT %(limit)s
)
SELECT (SELECT max(event_id) FROM chunk), event_id, type, processed_at
FROM (SELECT 1) AS one LEFT JOIN chunk ON actor_id = %(user)s
ORDER BY event_id
"""
_DEAD_LETTERS = """
WITH chunk AS MATERIALIZED (
    SELECT id FROM dead_letters WHERE id > %(after)s ORDER BY id LIMIT %(limit)s
)
SELECT (SELECT max(id) FROM chunk), found.id, state, created_at, key, value
FROM (SELECT 1) AS one LEFT JOIN (
    SELECT dead_letters.* FROM dead_letters JOIN chunk USING (id)
    WHERE key = %(key)s::bytea OR position(%(quoted)s::bytea IN value) > 0
) AS found ON true
ORDER BY 2
"""


def pieces(user_id: int, *, thorough: bool = False) -> Iterator[bytes]:
    """Yield what is held about the user, some whole lines at a time, at least one piece.

    `thorough` looks through the processed events and dead letters too, which takes as long as these
    tables are. Raises `DatabaseError`.
    """
    for section in SECTIONS:
        yield from _section(section, user_id)
    if thorough:
        yield from _events(user_id)
        for cell in cells.every().values():
            yield from _dead_letters(user_id, cell)
    yield _line("end", {"user_id": user_id})


def _section(section: Section, user_id: int) -> Iterator[bytes]:
    asked = cells.every().values() if section.by_follower else [cells.of(user_id)]
    for cell in asked:
        yield from _rows(section, user_id, cell)


def _rows(section: Section, user_id: int, cell: Cell) -> Iterator[bytes]:
    values: dict[str, Any] = {
        "user": user_id,
        "after": section.first_key,
        "limit": LINES_A_PIECE,
    }
    while rows := _fetch_on(cell, section.statement, values):
        lines = [_line(section.kind, dict(zip(section.columns, row, strict=True))) for row in rows]
        yield b"".join(lines)
        if len(rows) < LINES_A_PIECE:
            return
        values["after"] = rows[-1][0]


def _fetch_on(cell: Cell, statement: str, values: dict[str, Any]) -> list[tuple[Any, ...]]:
    # One question at a time: the next piece may be made by another thread.
    with cells.on(cell):
        return fetch(statement.replace("{served}", cells.serves_sql("follower_id")), values)


def _events(user_id: int) -> Iterator[bytes]:
    after: int | None = 0
    while after is not None:
        values = {"user": user_id, "after": after, "limit": WALKED_A_PIECE}
        rows = _fetch_on(cells.of(user_id), _EVENTS, values)
        after = rows[0][0]
        yield b"".join(
            _line("event", {"event_id": event_id, "type": kind, "processed_at": processed_at})
            for _, event_id, kind, processed_at in rows
            if event_id is not None
        )


def _dead_letters(user_id: int, cell: Cell) -> Iterator[bytes]:
    after: int | None = 0
    while after is not None:
        values = {
            "user": user_id,
            "after": after,
            "limit": LINES_A_PIECE,
            "key": str(user_id).encode(),
            "quoted": b'"%d"' % user_id,
        }
        rows = _fetch_on(cell, _DEAD_LETTERS, values)
        after = rows[0][0]
        for _, entry_id, state, created_at, key, value in rows:
            if entry_id is None or not erasing.names(user_id, as_bytes(key), as_bytes(value)):
                continue
            if _is_told_by_another(user_id, as_bytes(value)):
                continue
            yield _line(
                "dead_letter",
                {
                    "id": entry_id,
                    "state": state,
                    "created_at": created_at,
                    "event": pretty(value),
                },
            )


def _is_told_by_another(user_id: int, value: bytes | None) -> bool:
    """Tell whether the event is one of the discreet ones, and not the user's own."""
    try:
        fields = orjson.loads(value or b"")
    except orjson.JSONDecodeError:
        return False
    if not isinstance(fields, dict):
        return False
    return fields.get("type") in DISCREET and fields.get("actor_id") != str(user_id)


def _line(kind: str, fields: dict[str, Any]) -> bytes:
    told = {name: _json(name, value) for name, value in fields.items()}
    if "event_id" in fields and "created_at" not in fields:
        told["since"] = format_time(time_of(fields["event_id"]))
    return orjson.dumps({"kind": kind, **told}, option=orjson.OPT_APPEND_NEWLINE)


def _json(name: str, value: Any) -> Any:
    """Return a value as the API writes it: ids as strings, times in UTC to the millisecond."""
    if isinstance(value, datetime):
        return format_time(value)
    if name == "data" and value is not None:
        return orjson.Fragment(value)
    if isinstance(value, int) and (name == "id" or name.endswith("_id") or name == "floor"):
        return str(value)
    return value
