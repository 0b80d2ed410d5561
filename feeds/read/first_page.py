"""Reading the first page of a feed: the one place that knows in which order.

1. The *near cache*, on the event loop alone: a page that this process keeps, and has heard of no
   change to.
2. *Redis*: a page whose seal is whole, or a lease to store one.
3. *PostgreSQL*. The authors that the page watches are sealed before anything of it is read, so that
   a post of theirs which is not on it breaks the seal. It is stored only if changes to the feed
   will void it, and in place of the lease.

An event loop looks in the first two, with `find`, and hands over to `read` on a thread what is in
neither.
"""

from collections.abc import Sequence
from typing import NamedTuple

from feeds.read import here, page
from feeds.read.near_cache import KeptPage, NearCache
from feeds.read.page import CachedPage, Newest
from feeds.read.pages import Lookup
from feeds.timeline import Reader
from posts import pagination
from posts.pagination import Page, Position


class FirstPage(NamedTuple):
    """A first page, and whether it came from the cache: `hit`, `miss` or `bypass`."""

    page: CachedPage
    result: str


async def find(near: NearCache, user_id: int) -> KeptPage | None:
    """Return the first page of the user's feed where an event loop can have it: from what it keeps,
    or from Redis. None: it has to be read.
    """
    return near.kept(user_id) or await near.find(user_id)


def read(user_id: int) -> FirstPage:
    """Return the first page of the user's feed: it was cached, or is read and cached on the way."""
    found, lookup = _read(user_id)
    return FirstPage(found, lookup.result)


def count_new(user_id: int, since: int | None) -> tuple[bytes | None, str]:
    """Return the answer to how many posts are newer than `since`, or else than the user has seen,
    and whether the page came from the cache.

    The answer is None when the user has never said what they have seen.
    """
    found, lookup = _read(user_id)
    if since is None:
        since = page.seen_of(found)
    if since is None:
        return None, lookup.result
    body = page.new_posts_body(found, since)
    if body is None:
        body = page.counted(_remember_newest(user_id, found, lookup), since)
    return body, lookup.result


def read_body(user_id: int, position: Position, limit: int) -> bytes:
    """Return the body of any page of a feed from PostgreSQL; a first one tells what is unread."""
    reader = Reader(user_id)
    found = _read_page(reader, position, limit)
    if position != pagination.START:
        return page.body_of(found)
    newest = _newest(reader, found)
    return page.body_of(found, page.progress(newest.ids, reader.seen))


def _read(user_id: int) -> tuple[CachedPage, Lookup]:
    lookup = here.pages.look_up(user_id)
    if lookup.page:
        return lookup.page, lookup
    reader = Reader(user_id)
    lookup = here.pages.watch(lookup, reader.pulled_authors())
    found = _read_page(reader, pagination.START, pagination.DEFAULT_LIMIT)
    made = page.rendered(found, _newest(reader, found), reader.seen)
    if reader.cacheable:
        here.pages.store(lookup, made)
    return made, lookup


def _read_page(reader: Reader, position: Position, limit: int) -> Page:
    """Return a page, and remember that it was read."""
    found = pagination.paginate(reader.read, lambda row: row.id, position, limit, reader.any_beyond)
    reader.note()
    return found


def _newest(reader: Reader, found: Page) -> Newest:
    """Return the ids of the newest posts: those on the first page, and further ones only if the
    user has not seen so far.
    """
    ids = [row.id for row in found.rows]
    if found.next is None or len(ids) >= page.NEWEST_COUNTED:
        return Newest(ids, more=False)
    if reader.seen is None or reader.seen >= ids[-1]:
        return Newest(ids, more=True)
    further = reader.read(found.next, page.NEWEST_COUNTED - len(ids))
    return Newest(ids + [row.id for row in further], more=False)


def _remember_newest(user_id: int, found: CachedPage, lookup: Lookup) -> Sequence[int]:
    """Read as many ids as are ever counted, and keep them with the cached page."""
    rows = Reader(user_id).read(pagination.START, page.NEWEST_COUNTED)
    newest = Newest([row.id for row in rows], more=False)
    if lookup.result == "hit":
        here.pages.store(lookup, found._replace(newest=page.newest_line(newest)))
    return newest.ids
