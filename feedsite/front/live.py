"""Live feeds: server-sent events on the event loop, `GET /feeds/{user_id}/live`.

A stream holds no queue: it is told the newest count of its feed, however many changes there were
since it last sent.
"""

import asyncio
import random
import threading
import time
from collections import defaultdict
from collections.abc import Collection
from contextlib import suppress
from typing import Any

import orjson
from django.conf import settings
from granian._granian import RSGIProtocolClosed as ProtocolClosed

from eventbus import metrics
from feeds.live import Count, LiveCounts, Wanted
from feedsite.postgresql.connection import answer_within

HEARTBEAT_SECONDS = 15.0
SEND_SECONDS = 20.0
COUNT_SECONDS = 30.0  # for which PostgreSQL is waited for
RETRY_MS = (1_000, 15_000)
HEARTBEAT = b": heartbeat\n\n"


class Stream:
    """One open stream; what it has to say is what changed since it last said something."""

    __slots__ = ("_events", "last", "opened_at", "since", "user_id", "wake")

    def __init__(self, wanted: Wanted) -> None:
        self.user_id, self.since = wanted
        self.opened_at = time.monotonic()
        self.last = Count(wanted.since or 0, 0, None)
        self.wake = asyncio.Event()
        self._events: dict[str, bytes] = {}

    def tell(self, name: str, data: dict[str, Any], event_id: int | None = None) -> None:
        """Have an event sent, in place of one of its name that has not been sent yet."""
        head = b"" if event_id is None else b"id: %d\n" % event_id
        self._events[name] = b"%bevent: %b\ndata: %b\n\n" % (
            head,
            name.encode(),
            orjson.dumps(data),
        )
        self.wake.set()

    def take(self) -> bytes:
        """Return what is to be sent now."""
        events, self._events = self._events, {}
        self.wake.clear()
        for name in events:
            metrics.live_events_total.labels(name).inc()
        return b"".join(events.values())

    def counted(self, count: Count, announced: bool) -> None:
        before, self.last, self.since = self.last, count, count.since
        if count.number > before.number or (count.newest_id or 0) > (before.newest_id or 0):
            data = {"newest_id": str(count.newest_id), "count": count.number}
            self.tell("new", data, count.newest_id)
        elif announced or count.number < before.number:
            self.tell("changed", {})


class LiveFeeds:
    """The open streams of one loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._streams: dict[int, set[Stream]] = defaultdict(set)
        self._open = 0
        self._is_hearing = True
        self._ending = False
        self._counts = LiveCounts(self)

    def start(self) -> None:
        threading.Thread(target=self._keep_counting, name="live", daemon=True).start()

    def _keep_counting(self) -> None:
        while not self._ending:
            with answer_within(COUNT_SECONDS):
                self._counts.turn()
        self._counts.close()

    def end(self) -> None:
        """End all streams, and refuse new ones."""
        self._ending = True
        for streams in self._streams.values():
            for stream in streams:
                stream.wake.set()

    @property
    def is_full(self) -> bool:
        return self._ending or self._open >= settings.LIVE_MAX_STREAMS

    def export(self) -> None:
        """Set the gauge of open streams."""
        metrics.live_streams.set(self._open)

    async def serve(self, wanted: Wanted, transport: Any, expires_at: float) -> None:
        """Send events until the token expires, the client leaves or does not read, or the process
        ends.
        """
        stream = Stream(wanted)
        self._open += 1
        self._streams[stream.user_id].add(stream)
        try:
            if not self._is_hearing:
                stream.tell("polling", {})
            self._counts.opened(stream.user_id)
            await self._send(transport, b": open\n" + _retry())
            await self._send_events(stream, transport, expires_at)
        except ProtocolClosed:
            pass
        except TimeoutError:
            metrics.live_streams_cut_off_total.inc()
        finally:
            self._close(stream)

    async def _send_events(self, stream: Stream, transport: Any, expires_at: float) -> None:
        while not self._ending:
            left = expires_at - time.time()
            if left <= 0:
                break
            with suppress(TimeoutError):
                await asyncio.wait_for(stream.wake.wait(), min(left, HEARTBEAT_SECONDS))
            if not self._ending:
                await self._send(transport, stream.take() or HEARTBEAT)
        await self._send(transport, _retry() + b"event: end\ndata: {}\n\n")

    async def _send(self, transport: Any, data: bytes) -> None:
        await asyncio.wait_for(transport.send_bytes(data), SEND_SECONDS)

    def _close(self, stream: Stream) -> None:
        self._open -= 1
        streams = self._streams[stream.user_id]
        streams.discard(stream)
        if not streams:
            del self._streams[stream.user_id]

    # What the thread that counts calls. Copies of a dictionary or set are made in one step.

    def open_feeds(self) -> set[int]:
        return set(self._streams.copy())

    def wanted(self, user_ids: Collection[int] | None) -> list[Wanted]:
        streams = self._streams.copy()
        chosen = streams if user_ids is None else [one for one in user_ids if one in streams]
        found = {
            Wanted(user_id, stream.since)
            for user_id in chosen
            for stream in streams[user_id].copy()
        }
        return list(found)

    def counted(self, counts: dict[Wanted, Count], announced: bool, asked_at: float) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._counted, counts, announced, asked_at)

    def heard(self, is_hearing: bool) -> None:
        if is_hearing != self._is_hearing:
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._heard, is_hearing)

    def _counted(self, counts: dict[Wanted, Count], announced: bool, asked_at: float) -> None:
        for wanted, count in counts.items():
            for stream in self._streams.get(wanted.user_id, ()):
                # A count from before it was opened tells nothing of it.
                if stream.since == wanted.since and asked_at >= stream.opened_at:
                    stream.counted(count, announced)

    def _heard(self, is_hearing: bool) -> None:
        if is_hearing == self._is_hearing:
            return
        self._is_hearing = is_hearing
        for streams in self._streams.values():
            for stream in streams:
                stream.tell("live" if is_hearing else "polling", {})


def _retry() -> bytes:
    """Return when to come again, spread so that not all who are sent away together do so
    together.
    """
    return b"retry: %d\n\n" % random.randint(*RETRY_MS)  # noqa: S311 - no secret
