"""What a first page looks like: as it is kept in Redis, and in the answers made of it.

Kept is a *value*: a lease, or a page in five lines. Its body holds the cursors of its neighbours
and the JSON of its posts, three lines more: links depend on the host name that a request came by,
so they are put in last.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import orjson

from posts import pagination
from posts.models import PostRow
from posts.pagination import Page
from posts.views import post_json

# A value is a lease, or a page: the nonce of the lease that it replaced, its seal, the authors it
# watches, the newest ids, and the body, a line each. The nonce tells a page from one that looks the
# same and was made after a change in between: who adds to the one must not replace the other. The
# number is raised with every change to what a page looks like. It is not part of the key, for old
# and new processes that run side by side during a release void each other's.
LEASE, PAGE = b"L", b"P4"
AUTHOR_KEYS = b"author:"
NEWEST_COUNTED = 100
_MORE = "+"


class CachedPage(NamedTuple):
    """The first page of a feed but for its links, and the ids of the newest posts."""

    newest: bytes
    body: bytes


class KeptValue(NamedTuple):
    """A page as it is kept: made under which lease, and whole while its seal is."""

    nonce: bytes
    seal: bytes
    page: CachedPage


def page_key(user_id: int, era: str) -> str:
    """Return where the first page of the user's feed is kept."""
    # The braces keep a user's keys on one node of a Redis cluster.
    return f"feed:{{{user_id}}}:{era}"


def author_key(author_id: int, era: str) -> str:
    """Return where the token of an author is kept, which each of their pulled posts changes."""
    return f"author:{{{author_id}}}:{era}"


def to_value(kept: KeptValue) -> bytes:
    """Return what `read_value` reads."""
    return b"\n".join([PAGE + kept.nonce, kept.seal, *kept.page])


def read_value(value: bytes) -> KeptValue | None:
    """Return the page; None if it is a lease, or a page of another release."""
    if not value.startswith(PAGE):
        return None
    nonce, digest, authors, newest, body = value.removeprefix(PAGE).split(b"\n", 4)
    return KeptValue(nonce, digest + b"\n" + authors, CachedPage(newest, body))


def sealed(authors: Sequence[int], tokens: Iterable[bytes | None]) -> bytes:
    """Return the seal of a page that watches `authors`, whose tokens are these."""
    digest = hashlib.blake2b(b"".join(token or b"" for token in tokens), digest_size=16).hexdigest()
    return f"{digest}\n{','.join(map(str, authors))}".encode()


def watched_by(seal: bytes) -> list[int]:
    """Return the authors whose tokens the seal was made of."""
    authors = seal.partition(b"\n")[2]
    return [int(author) for author in authors.split(b",")] if authors else []


def rendered(page: Page) -> CachedPage:
    """Return a first page as it is cached."""
    return CachedPage(newest_of(page.rows, more=page.next is not None), body_of(page))


def body_of(page: Page) -> bytes:
    """Return any page of a feed as `with_links` takes it."""
    cursors = [position.encode() if position else "" for position in (page.next, page.previous)]
    results = orjson.dumps([post_json(row) for row in page.rows])
    return b"\n".join([*(cursor.encode() for cursor in cursors), results])


def with_links(body: bytes, address: str, limit: str | None) -> bytes:
    """Return a body as it is sent, with links to its neighbours at `address`, its own URL without a
    query.
    """
    following, previous, results = body.split(b"\n", 2)
    links = (
        orjson.dumps(pagination.link_at(address, cursor.decode(), limit) if cursor else None)
        for cursor in (following, previous)
    )
    return b'{"results":%b,"next":%b,"previous":%b}' % (results, *links)


def newest_of(rows: Sequence[PostRow], *, more: bool) -> bytes:
    """Return the ids of the newest posts, with a sign at the end if that is not all and not yet
    `NEWEST_COUNTED`.
    """
    return ",".join([str(row.id) for row in rows] + [_MORE] * more).encode()


def new_posts_body(page: CachedPage, since: int) -> bytes | None:
    """Return the answer to how many posts are newer than `since`; None if the page does not reach
    so far back.
    """
    ids = page.newest.decode().split(",") if page.newest else []
    more = ids[-1:] == [_MORE]
    if more:
        ids.pop()
    newest = [int(post_id) for post_id in ids]
    if more and newest[-1] > since:
        return None
    return counted(newest, since)


def counted(newest: Sequence[int], since: int) -> bytes:
    """Return how many of these ids, from the highest, are above `since`."""
    count = sum(1 for post_id in newest if post_id > since)
    return orjson.dumps({"count": count, "newest_id": str(newest[0]) if newest else None})
