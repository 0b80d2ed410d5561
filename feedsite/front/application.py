"""The API's application, called by granian for each request on the event loop of each of its
processes.
"""

import asyncio
from contextlib import suppress

import structlog
from django.core.handlers.wsgi import WSGIHandler
from granian._granian import RSGIProtocolClosed as ProtocolClosed

from eventbus import cells, producer
from feeds.read import here
from feeds.read.near_cache import KEPT_BYTES, NearCache
from feedsite import errors
from feedsite.front.bridge import Bridge, Overloaded
from feedsite.front.cross_origin import CrossOrigin
from feedsite.front.hot import HTML, LIVE, HotAnswers, has_good_host, refusal
from feedsite.front.http import Answer, BodyClock, BodyRefused, Connection, Request, Scope
from feedsite.front.keepers import Keepers
from feedsite.front.live import LiveFeeds
from feedsite.front.spool import FileAnswer
from feedsite.front.tally import Tally

EXPORT_SECONDS = 1.0
# Scrapes, like probes, come from inside and call a process by its address.
METRICS = "/metrics"
CLOSE = ("connection", "close")
RETRY_LATER = ("retry-after", "5")
RETRY_SOON = ("retry-after", "1")

log = structlog.get_logger(__name__)


class Application:
    """Answers requests: on the loop what is hot, by Django all else (RSGI 1.5)."""

    def __init__(self, handler: WSGIHandler, is_hot: bool = True) -> None:
        self._handler = handler
        self._is_hot = is_hot
        self._closed = False

    def __rsgi_init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin; called once, before the first request."""
        self._loop = loop
        self._body_clock = BodyClock(loop)
        every = cells.every()
        kept_bytes = KEPT_BYTES // len(every)
        self._near = {
            name: NearCache(loop, here.of(cell).trust, kept_bytes) for name, cell in every.items()
        }
        self._live = LiveFeeds(loop)
        self._tally = Tally(loop)
        self._keepers = Keepers()
        self._cross_origin = CrossOrigin()
        self._hot = HotAnswers(self._near, self._tally, self._keepers, self._cross_origin)
        self._bridge = Bridge(self._handler)
        if self._is_hot:
            producer.attach(loop)
            for near in self._near.values():
                near.start()
            self._live.start()
        self._tally.start()
        self._keepers.start()
        self._export()

    def leave(self) -> None:
        """Begin to end: what would not end by itself is ended, and `__rsgi_del__` is called after
        the last request.
        """
        self._live.end()

    def __rsgi_del__(self, loop: asyncio.AbstractEventLoop) -> None:
        """End; called once, after the last request."""
        self._closed = True
        self._live.end()
        for near in self._near.values():
            near.close()
        self._tally.close()
        self._bridge.close()
        self._keepers.stop()

    async def __rsgi__(self, scope: Scope, connection: Connection) -> None:
        """Answer one request, whatever happens."""
        request = Request(scope, connection, self._body_clock)
        if request.path.endswith(LIVE) and self._stream(request, connection):
            return
        try:
            answer = await self._answer(request)
        except BodyRefused as error:
            answer = self._refusal(request, error.status, error.code, error.detail, CLOSE)
        except Overloaded:
            detail = "Too much of this is asked for at once. Try again."
            answer = self._refusal(request, 503, "overloaded", detail, RETRY_SOON)
        except Exception:
            log.exception("request_not_answered", method=request.method)
            answer = self._refusal(request, 500, "internal_error", "Something went wrong here.")
        with suppress(ProtocolClosed):  # the client has left
            if isinstance(answer, FileAnswer):
                connection.response_file(*answer)
            else:
                connection.response_bytes(*answer)

    def _stream(self, request: Request, connection: Connection) -> bool:
        """Begin to serve a live feed; False if none is asked for, or something is wrong with the
        request.
        """
        if not self._is_hot:
            return False
        opening = self._hot.live(request)
        if opening is None:
            return False
        if self._live.is_full:
            detail = "No more live feeds here now."
            full = self._refusal(request, 503, "too_many_streams", detail, RETRY_LATER)
            connection.response_bytes(*full)
            return True
        if request.method == "HEAD":
            connection.response_empty(200, opening.headers)
            return True
        transport = connection.response_stream(200, opening.headers)
        self._live.open(opening.wanted, transport, opening.expires_at, request.scope.client)
        return True

    async def _answer(self, request: Request) -> Answer | FileAnswer:
        probe = self._hot.probe(request)
        if probe is not None:
            return probe
        if request.path != METRICS and not has_good_host(request):
            detail = "The Host header does not name a host of this site."
            return self._refusal(request, 400, "bad_request", detail)
        if self._is_hot:
            answer = await self._hot.answer(request) or self._hot.preflight(request)
            if answer is not None:
                return answer
        return await self._bridge.answer(request)

    def _refusal(
        self, request: Request, status: int, code: str, detail: str, *more: tuple[str, str]
    ) -> Answer:
        """Return an error that arose before Django was asked: a page to people, JSON to all
        others.
        """
        more = (*more, *self._cross_origin.headers(request))
        if errors.is_for_people(request.path):
            return Answer(status, [HTML, *more], errors.page(status, detail).encode())
        return refusal(status, code, detail, *more)

    def _export(self) -> None:
        if self._closed:
            return
        self._bridge.export()
        self._live.export()
        self._loop.call_later(EXPORT_SECONDS, self._export)
