"""What a first page looks like: as it is kept in Redis, and in the answers made of it.

Kept is a *value*: a lease, or a page in six lines. Its body holds the cursors of its neighbours,
how far it was seen, and the JSON of its posts, four lines more: links depend on the host name that
a request came by, so they are put in last.
"""

import hashlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import orjson

from posts import pagination
from posts.pagination import Page
from posts.views import post_json

# A value is a lease, or a page: the nonce of the lease that it replaced, its seal, the authors it
# watches, the newest ids, the marker, and the body, a line each. The nonce tells a page from one
# that looks the same and was made after a change in between: who adds to the one must not replace
# the other. The number is raised with every change to what a page looks like. It is not part of the
# key, for old and new processes that run side by side during a release void each other's.
LEASE, PAGE = b"L", b"P5"
AUTHOR_KEYS = b"author:"
NEWEST_COUNTED = 100
_MORE = "+"


class CachedPage(NamedTuple):
    """The first page of a feed but for its links, the ids of the newest posts, and the post up to
    which its user has seen it, if they have said so.
    """

    newest: bytes
    body: bytes
    seen: bytes = b""


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
    page = kept.page
    return b"\n".join([PAGE + kept.nonce, kept.seal, page.newest, page.seen, page.body])


def read_value(value: bytes) -> KeptValue | None:
    """Return the page; None if it is a lease, or a page of another release."""
    if not value.startswith(PAGE):
        return None
    nonce, digest, authors, newest, seen, body = value.removeprefix(PAGE).split(b"\n", 5)
    return KeptValue(nonce, digest + b"\n" + authors, CachedPage(newest, body, seen))


def sealed(authors: Sequence[int], tokens: Iterable[bytes | None]) -> bytes:
    """Return the seal of a page that watches `authors`, whose tokens are these."""
    digest = hashlib.blake2b(b"".join(token or b"" for token in tokens), digest_size=16).hexdigest()
    return f"{digest}\n{','.join(map(str, authors))}".encode()


def watched_by(seal: bytes) -> list[int]:
    """Return the authors whose tokens the seal was made of."""
    authors = seal.partition(b"\n")[2]
    return [int(author) for author in authors.split(b",")] if authors else []


class Newest(NamedTuple):
    """The ids of the newest posts of a feed, and whether there are more of which one may be asked:
    not beyond `NEWEST_COUNTED`.
    """

    ids: Sequence[int]
    more: bool


def rendered(page: Page, newest: Newest, seen: int | None) -> CachedPage:
    """Return a first page as it is cached."""
    body = body_of(page, progress(newest.ids, seen))
    return CachedPage(newest_line(newest), body, b"" if seen is None else b"%d" % seen)


def body_of(page: Page, progress: bytes = b"") -> bytes:
    """Return any page of a feed as `with_links` takes it, with the `progress` of a first one."""
    cursors = [position.encode() if position else "" for position in (page.next, page.previous)]
    results = orjson.dumps([post_json(row) for row in page.rows])
    return b"\n".join([*(cursor.encode() for cursor in cursors), progress, results])


def progress(newest: Sequence[int], seen: int | None) -> bytes:
    """Return what a first page says of how far it was seen.

    `newest` must be all that are newer than `seen`, or `NEWEST_COUNTED` of them.
    """
    if seen is None:
        return b',"seen":null,"unread":null'
    return b',"seen":"%d","unread":%d' % (seen, newer_than(seen, newest))


def with_links(body: bytes, address: str, limit: str | None) -> bytes:
    """Return a body as it is sent, with links to its neighbours at `address`, its own URL without a
    query, and their cursors.
    """
    following, previous, progress, results = body.split(b"\n", 3)
    links = (
        orjson.dumps(pagination.link_at(address, cursor.decode(), limit) if cursor else None)
        for cursor in (following, previous)
    )
    # Cursors are base64url, which JSON writes as it is.
    cursors = (b'"%b"' % cursor if cursor else b"null" for cursor in (following, previous))
    return b'{"results":%b,"next":%b,"previous":%b,"next_cursor":%b,"previous_cursor":%b%b}' % (
        results,
        *links,
        *cursors,
        progress,
    )


def newest_line(newest: Newest) -> bytes:
    """Return these ids as they are kept, with a sign at the end if there are more."""
    return ",".join([str(post_id) for post_id in newest.ids] + [_MORE] * newest.more).encode()


def seen_of(page: CachedPage) -> int | None:
    """Return the post up to which the user has seen the feed, if they have said so."""
    return int(page.seen) if page.seen else None


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
    """Return the answer to how many of these ids, from the highest, are above `since`."""
    newest_id = str(newest[0]) if newest else None
    return orjson.dumps({"count": newer_than(since, newest), "newest_id": newest_id})


def newer_than(post_id: int, newest: Sequence[int]) -> int:
    """Return how many of these ids are above `post_id`, at most `NEWEST_COUNTED`."""
    return min(sum(1 for one in newest if one > post_id), NEWEST_COUNTED)
