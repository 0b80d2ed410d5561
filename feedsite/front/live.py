"""Live feeds: server-sent events on the event loop, `GET /feeds/{user_id}/live`.

A stream holds no queue: what it says next is how things stand then, however many changes there were
since it last said something.
"""

import asyncio
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import orjson
from django.conf import settings
from granian._granian import RSGIProtocolClosed as ProtocolClosed

from eventbus import cells, metrics
from eventbus.cells import Cell
from eventbus.database.deadline import answer_within
from feeds.announcements import MARK, Change
from feeds.live import MOST_COUNTED, Counting, Found, Hearing, NewPosts, Wanted
from feedsite.front import unread
from feedsite.front.keepers import Keeper

HEARTBEAT_SECONDS = 15.0
COUNT_SECONDS = 30.0  # for which PostgreSQL is waited for
UNREAD_EVERY_SECONDS = 2.0
RETRY_MS = (1_000, 15_000)
HEARTBEAT = b": heartbeat\n\n"


class Progress(NamedTuple):
    """How far the user has seen a feed, and how many of its posts are unread; None: never said."""

    seen: str | None
    unread: int | None


class Stream:
    """One open stream: what is new in its feed, and which events it has still to send."""

    __slots__ = (
        "_change_is_told",
        "_heard",
        "_progress_told",
        "_untold",
        "_woken",
        "asked_at",
        "is_cut_off",
        "peer",
        "posts",
        "task",
        "unread_posts",
        "user_id",
        "wanted_since",
    )

    def __init__(self, wanted: Wanted, peer: str) -> None:
        self.user_id, self.wanted_since = wanted
        self.peer = peer
        self.is_cut_off = False
        self.task: asyncio.Task[None] | None = None  # which nobody else holds
        self.asked_at = 0.0  # monotonic; 0: no count is awaited
        self.posts: NewPosts | None = None  # None: not counted yet
        # None: its user has never said what they have seen.
        self.unread_posts: NewPosts | None = None
        self._progress_told: Progress | None = None  # None: not counted yet
        self._heard: list[int] = []  # since `asked_at`, which the count may know of or not
        self._change_is_told = False  # of which that count is
        self._untold: dict[str, None] = {}
        self._woken: asyncio.Future[None] | None = None

    @property
    def since(self) -> int | None:
        return self.wanted_since if self.posts is None else self.posts.since

    def ask(self) -> Wanted:
        """Return what is to be counted, from now on."""
        self.asked_at = time.monotonic()
        # Until the first count what was heard tells what is newer than the stream.
        if self.posts is not None:
            self._heard = []
        return Wanted(self.user_id, self.since)

    def announced(self, post_ids: Iterable[int]) -> None:
        """Hear that these posts are new in the feed."""
        if self.asked_at:
            self._heard += post_ids
            # PostgreSQL may be away for this process alone, and for long.
            if len(self._heard) > 2 * MOST_COUNTED:
                self._heard = sorted(self._heard)[-MOST_COUNTED:]
        is_unread = self.unread_posts is not None and self.unread_posts.add(post_ids)
        if self.posts is not None and self.posts.add(post_ids):
            # If a count is awaited, this is told from before it, and may have to be set right.
            self._change_is_told = False
            self.tell("new")
        elif is_unread:
            self.tell("seen")

    def changed(self) -> None:
        """Hear that the feed has changed otherwise; it is to be counted."""
        self._change_is_told = True
        self.tell("changed")

    def counted(self, found: Found) -> None:
        """Take over what the feed has, which was asked for after `asked_at`."""
        before = self.posts
        self.posts = self._new_posts(found)
        self.posts.add(found.post_ids)
        self.posts.add(self._heard)
        self.unread_posts = self._counted_unread(found)
        self.asked_at, self._heard = 0.0, []
        known_count = before.count if before else 0
        known_newest = (before.newest_id if before else None) or 0
        if self.posts.count > known_count or (self.posts.newest_id or 0) > known_newest:
            self.tell("new")
        elif self.posts.count < known_count and not self._change_is_told:
            self.tell("changed")
        self._tell_progress()
        self._change_is_told = False

    def _tell_progress(self) -> None:
        told = self._progress_told
        if told is None:
            self._progress_told = self.progress
            return
        # An event `new` says how many are unread, and nothing of the marker.
        is_told_with_new = "new" in self._untold and self.progress.seen == told.seen
        if self.progress != told and not is_told_with_new:
            self.tell("seen")

    def _new_posts(self, found: Found) -> NewPosts:
        if self.posts is not None:
            return NewPosts(self.posts.since)
        if self.wanted_since is not None:
            return NewPosts(self.wanted_since)
        # What was announced since the stream was opened is new to it.
        before = [post_id for post_id in found.post_ids if post_id not in self._heard]
        return NewPosts(before[0] if before else found.after)

    def _counted_unread(self, found: Found) -> NewPosts | None:
        if found.seen is None:
            return None
        posts = NewPosts(found.seen)
        posts.add(found.unread_ids)
        posts.add(self._heard)
        return posts

    @property
    def progress(self) -> "Progress":
        if self.unread_posts is None:
            return Progress(None, None)
        return Progress(str(self.unread_posts.since), self.unread_posts.count)

    def tell(self, name: str) -> None:
        """Have an event sent, once however often it is told before that."""
        self._untold[name] = None
        self.wake()

    def take(self, sent: Counter[str]) -> bytes:
        """Return what is to be sent now, and count it."""
        names, self._untold = self._untold, {}
        sent.update(names.keys())
        return b"".join(map(self._event, names))

    def _event(self, name: str) -> bytes:
        if name == "new" and self.posts is not None:
            self._progress_told = self.progress
            data = orjson.dumps({**self.posts.to_json(), "unread": self.progress.unread})
            return b"id: %d\nevent: new\ndata: %b\n\n" % (self.posts.newest_id or 0, data)
        if name == "seen":
            self._progress_told = self.progress
            return b"event: seen\ndata: %b\n\n" % orjson.dumps(self.progress._asdict())
        return b"event: %b\ndata: {}\n\n" % name.encode()

    def woken(self, loop: asyncio.AbstractEventLoop) -> "asyncio.Future[None]":
        """Return what is done once there is something to say."""
        self._woken = loop.create_future()
        if self._untold or self.is_cut_off:
            self.wake()
        return self._woken

    def wake(self) -> None:
        """Have the stream look whether there is something to do."""
        if self._woken is not None and not self._woken.done():
            self._woken.set_result(None)


class OpenFeed:
    """A feed with open streams, and the authors from whom it pulls, as last counted."""

    __slots__ = ("pulled_authors", "streams")

    def __init__(self) -> None:
        self.streams: set[Stream] = set()
        self.pulled_authors: frozenset[int] = frozenset()


class LiveFeeds:
    """The open streams of one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._cells = {name: CellStreams(loop, cell) for name, cell in cells.every().items()}
        self._open = 0
        self._ending = False
        self._sent: Counter[str] = Counter()
        self._unread = unread.Unread()
        self._to_break: deque[str] = deque()  # connections of streams that were cut off
        self._unread_keeper = Keeper("live-unread", self._look_for_unread, UNREAD_EVERY_SECONDS)

    def start(self) -> None:
        for of_cell in self._cells.values():
            of_cell.start()
        self._unread_keeper.start()

    def end(self) -> None:
        """End all streams, and refuse new ones."""
        self._ending = True
        self._unread_keeper.stop()
        for of_cell in self._cells.values():
            of_cell.end()

    @property
    def is_full(self) -> bool:
        return self._ending or self._open >= settings.LIVE_MAX_STREAMS

    def export(self) -> None:
        """Export what is open, and what was sent since the last time."""
        metrics.live_streams.set(self._open)
        for name, number in self._sent.items():
            metrics.live_events_total.labels(name).inc(number)
        self._sent.clear()

    def open(self, wanted: Wanted, transport: Any, expires_at: float, peer: str) -> None:
        """Send events until the token expires, the client leaves or does not read, the feed moves
        to another cell, or the process ends.

        In a task of its own, so that granian can let go of the request: its headers and the task
        that answered it are a quarter of what a stream costs.
        """
        stream = Stream(wanted, peer)
        self._open += 1
        of_cell = self._cells[cells.of(stream.user_id).name]
        of_cell.add(stream)
        stream.task = self._loop.create_task(self._serve(stream, of_cell, transport, expires_at))

    async def _serve(
        self, stream: Stream, of_cell: "CellStreams", transport: Any, expires_at: float
    ) -> None:
        try:
            await transport.send_bytes(b": open\n" + _retry())
            left = expires_at - time.time()
            while left > 0 and not (self._ending or stream.is_cut_off):
                timer = self._loop.call_later(min(left, HEARTBEAT_SECONDS), stream.wake)
                await stream.woken(self._loop)
                timer.cancel()
                left = expires_at - time.time()
                if not stream.is_cut_off:
                    await transport.send_bytes(stream.take(self._sent) or HEARTBEAT)
                if not of_cell.serves(stream):
                    break
            if not stream.is_cut_off:
                await transport.send_bytes(_retry() + b"event: end\ndata: {}\n\n")
        except ProtocolClosed:
            pass
        finally:
            self._open -= 1
            of_cell.remove(stream)

    def _look_for_unread(self) -> None:
        """Cut off the streams whose clients do not read; in a thread."""
        _call(self._loop, self._cut_off, self._unread.look())
        while self._to_break:
            unread.close(self._to_break.popleft())

    def _cut_off(self, peers: set[str]) -> None:
        if not peers:
            return
        for stream in [one for of_cell in self._cells.values() for one in of_cell.streams()]:
            if stream.peer in peers and not stream.is_cut_off:
                stream.is_cut_off = True
                metrics.live_streams_cut_off_total.inc()
                stream.wake()
                self._to_break.append(stream.peer)


class CellStreams:
    """The open streams of one loop for the readers of a cell, and the threads that hear and count
    there.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, cell: Cell) -> None:
        self._loop = loop
        self._cell = cell
        self._feeds: dict[int, OpenFeed] = {}
        self.is_hearing = True
        self._ending = False
        self._pulled_heard_at = 0.0
        self._hearing = Hearing(self)
        self._counting = Counting(self)

    def start(self) -> None:
        for name, act in (("live-hearing", self._keep_hearing), ("live", self._keep_counting)):
            threading.Thread(target=act, name=self._cell.named(name), daemon=True).start()

    def end(self) -> None:
        """End the threads, and have all streams look whether they go on."""
        self._ending = True
        for stream in self.streams():
            stream.wake()

    def add(self, stream: Stream) -> None:
        """Tell the stream from now on of its feed."""
        feed = self._feeds.setdefault(stream.user_id, OpenFeed())
        feed.streams.add(stream)
        if not self.is_hearing:
            stream.tell("polling")
        self._counting.ask([stream.ask()])

    def remove(self, stream: Stream) -> None:
        feed = self._feeds[stream.user_id]
        feed.streams.discard(stream)
        if not feed.streams:
            del self._feeds[stream.user_id]

    def serves(self, stream: Stream) -> bool:
        """Tell whether the feed of the stream is this cell's still."""
        return cells.of(stream.user_id).name == self._cell.name

    def streams(self) -> list[Stream]:
        return [stream for feed in self._feeds.values() for stream in feed.streams]

    def _keep_hearing(self) -> None:
        with cells.on(self._cell):
            while not self._ending:
                self._hearing.turn()
            self._hearing.close()

    def _keep_counting(self) -> None:
        with cells.on(self._cell):
            while not self._ending:
                with answer_within(COUNT_SECONDS):
                    self._counting.turn()

    # What the threads call: a copy of the dictionary is made in one step, all else is for the loop.

    def open_feeds(self) -> set[int]:
        return set(self._feeds.copy())

    def announced(self, changes: Sequence[Change]) -> None:
        _call(self._loop, self._announced, changes)

    def missed(self) -> None:
        _call(self._loop, self._ask_all)

    def heard(self, is_hearing: bool) -> None:
        if is_hearing != self.is_hearing:
            _call(self._loop, self._heard, is_hearing)

    def found(self, found: dict[Wanted, Found], asked_at: float) -> None:
        _call(self._loop, self._found, found, asked_at)

    # On the loop.

    def _announced(self, changes: Sequence[Change]) -> None:
        for change in changes:
            for stream in self._concerned(change):
                if change.post_ids and MARK not in change.post_ids:
                    stream.announced(change.post_ids)
                    continue
                if not change.post_ids:
                    stream.changed()
                self._counting.ask([stream.ask()])

    def _concerned(self, change: Change) -> list[Stream]:
        users = set(change.user_ids)
        if change.pulled_from:
            self._pulled_heard_at = time.monotonic()
            users |= {
                user_id
                for user_id, feed in self._feeds.items()
                if change.pulled_from in feed.pulled_authors
            }
        feeds = [self._feeds[user_id] for user_id in users if user_id in self._feeds]
        return [stream for feed in feeds for stream in feed.streams]

    def _ask_all(self) -> None:
        self._counting.ask([stream.ask() for stream in self.streams()])

    def _found(self, found: dict[Wanted, Found], asked_at: float) -> None:
        for wanted, of_feed in found.items():
            feed = self._feeds.get(wanted.user_id)
            if feed is not None:
                self._counted(feed, wanted.since, of_feed, asked_at)

    def _counted(self, feed: OpenFeed, since: int | None, found: Found, asked_at: float) -> None:
        pulled_authors = frozenset(found.pulled_authors)
        is_as_known = pulled_authors == feed.pulled_authors
        feed.pulled_authors = pulled_authors
        for stream in feed.streams:
            # A count from before it was asked for tells nothing of what has changed since.
            if not 0 < stream.asked_at <= asked_at or stream.since != since:
                continue
            stream_asked_at = stream.asked_at
            stream.counted(found)
            # A post of an author who was not known then passed by.
            if not is_as_known and self._pulled_heard_at >= stream_asked_at:
                self._counting.ask([stream.ask()])

    def _heard(self, is_hearing: bool) -> None:
        if is_hearing == self.is_hearing:
            return
        self.is_hearing = is_hearing
        for stream in self.streams():
            stream.tell("live" if is_hearing else "polling")


def _call(loop: asyncio.AbstractEventLoop, act: Callable[..., None], *values: Any) -> None:
    """Have the loop call `act`; from a thread."""
    with suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(act, *values)


def _retry() -> bytes:
    """Return when to come again, spread so that not all who are sent away together do so
    together.
    """
    return b"retry: %d\n\n" % random.randint(*RETRY_MS)  # noqa: S311 - no secret
