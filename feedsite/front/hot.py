"""What is asked most, answered on the event loop: cached first pages, how many posts are new, new
posts, probes.

Each method answers what it is sure of, with the functions that the views call, and returns None for
all else: the view of the same path is then asked, which says what is wrong with a request.
"""

import random
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple
from urllib.parse import parse_qs

import orjson
import structlog
from django.conf import settings
from django.http import HttpRequest, HttpResponse
from django.http.request import split_domain_port, validate_host
from django.middleware.clickjacking import XFrameOptionsMiddleware
from django.middleware.security import SecurityMiddleware
from redis import RedisError
from rest_framework.exceptions import APIException, Throttled
from rest_framework.views import APIView

from eventbus import cells, producer
from eventbus.exceptions import IdsUnavailable, PublishFailed
from eventbus.ids import idempotency
from eventbus.ids.snowflake import number_in
from eventbus.telemetry import correlation
from eventbus.watch.health import ALIVE, Health
from feeds import live_tickets
from feeds.live import Wanted
from feeds.read import first_page
from feeds.read.near_cache import KeptPage, NearCache
from feeds.read.page import new_posts_body, seen_of, with_links
from feeds.views import (
    FeedView,
    LiveView,
    NewPostsView,
    live_since,
    may_read,
    since_of,
)
from feedsite.api import error_answer, media_type_of, parse_json
from feedsite.authentication import expiry_of, principal_without_waiting, token_of
from feedsite.front.cross_origin import CrossOrigin
from feedsite.front.http import Answer, HeaderList, Request
from feedsite.front.keepers import Keepers
from feedsite.front.tally import Tally
from posts import rates, services
from posts.principal import Principal
from posts.rates import Standing
from posts.views import PostsView, accepted_body, accepted_post_json, event_address, written_in

FEEDS, NEW, LIVE = "/feeds/", "/new", "/live"
EVENT_STREAM = ("content-type", "text/event-stream")
JSON = ("content-type", "application/json")
HTML = ("content-type", "text/html; charset=utf-8")
TEXT = ("content-type", "text/plain")
NOT_BUFFERED = (("cache-control", "no-store"), ("x-accel-buffering", "no"))
# What Django's metrics call it when no view was asked.
NO_VIEW = "<unnamed view>"
HIT = ("x-cache", "hit")
# To read a larger body with data, all of it numbers and keys, would keep the loop for long.
AT_ONCE_BYTES = 32 * 1024

log = structlog.get_logger(__name__)


class WantedFeed(NamedTuple):
    """Whose first page is asked for, or how many of its posts are newer than `since`, or than its
    user has seen.
    """

    user_id: int
    is_page: bool
    since: int | None


class LiveOpening(NamedTuple):
    """A live feed that may be served."""

    wanted: Wanted
    expires_at: float
    headers: HeaderList


class HotAnswers:
    """Answers on one event loop."""

    def __init__(
        self,
        near: Mapping[str, NearCache],
        tally: Tally,
        keepers: Keepers,
        cross_origin: CrossOrigin,
    ) -> None:
        self._near = near  # by cell
        self._tally = tally
        self._keepers = keepers
        self._cross_origin = cross_origin
        self._common = {scheme: _common_headers(scheme) for scheme in ("http", "https")}
        views: tuple[type[APIView], ...] = (FeedView, LiveView, NewPostsView, PostsView)
        self._allow = {view: _allow(view) for view in views}

    def probe(self, request: Request) -> Answer | None:
        """Return the answer to a probe, which no other request can delay; None if it is none."""
        if request.path == "/healthz":
            return self._tell(request, "healthz", ALIVE)
        if request.path == "/readyz":
            return self._tell(request, "readyz", self._keepers.readiness())
        return None

    def preflight(self, request: Request) -> Answer | None:
        """Return the answer to a browser that asks whether a page of another site may ask; None if
        it is none.
        """
        headers = self._cross_origin.preflight(request)
        if headers is None:
            return None
        self._tally.count("OPTIONS", NO_VIEW, 200, 0.0)
        return Answer(200, [HTML, *headers, ("x-request-id", _request_id(request))], b"")

    async def answer(self, request: Request) -> Answer | None:
        """Return the answer, or None to have the request answered by Django."""
        if request.path == "/posts":
            return await self._post(request) if request.method == "POST" else None
        started = time.perf_counter()
        wanted = _wanted_feed(request)
        if wanted is None:
            return None
        near = self._near_of(wanted.user_id)
        kept = await first_page.find(near, wanted.user_id)
        return self._page(request, wanted, kept, started) if kept else None

    def live(self, request: Request) -> LiveOpening | None:
        """Return what a stream needs to begin; None if none is asked for, or the view has to say
        what is wrong.
        """
        path = request.path
        if request.method not in ("GET", "HEAD"):
            return None
        if not (path.startswith(FEEDS) and path.endswith(LIVE)):
            return None
        user_id = _user_id(path[len(FEEDS) : -len(LIVE)])
        if user_id is None or _is_redirected(request) or not has_good_host(request):
            return None
        query = parse_qs(request.scope.query_string, keep_blank_values=True)
        expires_at = _streams_until(request, user_id, query)
        if expires_at is None:
            return None
        try:
            since = live_since(request.headers.get("last-event-id"), query.get("since", [None])[-1])
        except APIException:
            return None
        headers = [EVENT_STREAM, *NOT_BUFFERED, *self._headers(request, LiveView)]
        self._tally.count(request.method, "live", 200, 0.0)
        return LiveOpening(Wanted(user_id, since), expires_at, headers)

    def _page(
        self, request: Request, wanted: "WantedFeed", kept: KeptPage, started: float
    ) -> Answer | None:
        view: type[APIView] = FeedView
        name = "feed"
        if wanted.is_page:
            body = self._first_page(request, kept)
            self._tally.count_cache("hit")
        else:
            view, name = NewPostsView, "new-posts"
            since = seen_of(kept.page) if wanted.since is None else wanted.since
            found = None if since is None else new_posts_body(kept.page, since)
            if found is None:
                return None
            body = found
        headers = [JSON, HIT, *self._headers(request, view)]
        self._tally.count(request.method, name, 200, time.perf_counter() - started)
        return Answer(200, headers, body)

    def _first_page(self, request: Request, kept: KeptPage) -> bytes:
        address = f"{_scheme(request)}://{request.headers.get('host')}"
        body = kept.answer_at(address)
        if body is None:
            made = with_links(kept.page.body, address + request.path, None)
            body = kept.keep_answer(address, made)
        return body

    async def _post(self, request: Request) -> Answer | None:
        started = time.perf_counter()
        principal = _principal(request)
        if principal is None or _is_redirected(request) or "idempotency-key" in request.headers:
            return None
        if media_type_of(request.header("content-type")) != "application/json":
            return None
        if "content-encoding" in request.headers:
            return None
        body = await request.body()
        if len(body) > AT_ONCE_BYTES:
            return None
        try:
            written = written_in(parse_json(body))
            ids = idempotency.fresh_without_waiting()
        except (APIException, IdsUnavailable):
            return None
        standing = await self._standing(principal)
        rate_headers = list(standing.headers().items()) if standing else []
        headers = [JSON, *rate_headers, *self._headers(request, PostsView)]
        if standing is not None and not standing.allowed:
            refused = error_answer(Throttled(standing.left_ms / 1_000))
            return self._refuse(request, refused, headers, started)
        post = services.new_post(
            author_id=principal.user_id, content=written.content, data=written.data, ids=ids
        )
        kafka_headers = _kafka_headers(request, headers[-1][1])
        try:
            await producer.publish_soon(post.to_event(), kafka_headers)
        except PublishFailed as error:
            correlation.bind_headers(kafka_headers, post.event_id)
            return self._refuse(request, error_answer(error), headers, started)
        headers.append(("location", event_address(post.event_id)))
        self._tally.count("POST", "posts", 202, time.perf_counter() - started)
        return Answer(202, headers, accepted_body(post.event_id, accepted_post_json(post)))

    def _near_of(self, user_id: int) -> NearCache:
        return self._near[cells.of(user_id).name]

    async def _standing(self, principal: Principal) -> Standing | None:
        limit = rates.write_limit()
        if limit is None:
            return None
        try:
            redis = self._near_of(principal.user_id).redis
            answer = await redis.ask(*rates.command(principal.user_id, limit))
        except RedisError:
            return None
        return rates.standing(limit, answer)

    def _refuse(
        self, request: Request, refused: HttpResponse, headers: HeaderList, started: float
    ) -> Answer:
        status = refused.status_code
        self._tally.count(request.method, "posts", status, time.perf_counter() - started)
        more = [
            (name.lower(), value)
            for name, value in refused.items()
            if name.lower() != "content-type"
        ]
        return Answer(status, headers + more, refused.content)

    def _tell(self, request: Request, view_name: str, found: Health) -> Answer | None:
        if request.method not in ("GET", "HEAD"):
            return None
        self._tally.count(request.method, view_name, found.status, 0.0)
        return Answer(found.status, [TEXT, *self._headers(request, None)], found.text.encode())

    def _headers(self, request: Request, view: type[APIView] | None) -> HeaderList:
        """Return what Django's middleware and REST framework add to an answer; last the id of the
        request.
        """
        headers = list(self._common[_scheme(request)])
        if view is not None:
            headers.append(("allow", self._allow[view]))
        headers += self._cross_origin.headers(request)
        headers.append(("x-request-id", _request_id(request)))
        return headers


def refusal(status: int, code: str, detail: str, *more: tuple[str, str]) -> Answer:
    """Return an error that arose before any view was asked."""
    body = orjson.dumps({"code": code, "detail": detail})
    return Answer(status, [JSON, *more], body)


def _wanted_feed(request: Request) -> WantedFeed | None:
    """Return what is asked of a feed, if that is all there is to say of the request."""
    path = request.path
    if not path.startswith(FEEDS) or request.method not in ("GET", "HEAD"):
        return None
    query = request.scope.query_string
    name = path[len(FEEDS) :]
    since = None
    is_page = not name.endswith(NEW)
    if query:
        since = None if is_page else _since(query)
        if since is None:
            return None
    name = name.removesuffix(NEW)
    user_id = _user_id(name)
    principal = _principal(request)
    if (
        user_id is None
        or principal is None
        or not may_read(principal, user_id)
        or _is_redirected(request)
        or request.has_body
    ):
        return None
    return WantedFeed(user_id, is_page, since)


def _streams_until(
    request: Request, user_id: int, query: Mapping[str, Sequence[str]]
) -> float | None:
    """Return until when the client may have the live feed of this user; None: not at all."""
    if "ticket" in query:
        expires_at = live_tickets.expires_at(query["ticket"][-1], user_id)
        if expires_at is not None:
            return expires_at
    principal = _principal(request)
    if principal is None or not may_read(principal, user_id):
        return None
    return expiry_of(_token(request))


def _principal(request: Request) -> Principal | None:
    return principal_without_waiting(_token(request))


def _token(request: Request) -> str:
    return token_of(request.header("authorization"))


def has_good_host(request: Request) -> bool:
    """Tell whether the request names one host, and one of ours."""
    hosts = request.headers.get_all("host")
    return len(hosts) == 1 and _is_allowed(hosts[0])


@lru_cache(maxsize=1_000)
def _is_allowed(host: str) -> bool:
    domain, _port = split_domain_port(host)
    return bool(domain) and validate_host(domain, settings.ALLOWED_HOSTS)


def _is_redirected(request: Request) -> bool:
    """Tell whether Django would send the client to HTTPS."""
    return settings.SECURE_SSL_REDIRECT and _scheme(request) != "https"


def _scheme(request: Request) -> str:
    """Return the scheme that the client used, as Django's `HttpRequest.scheme` does."""
    forwarded = request.headers.get("x-forwarded-proto")
    if forwarded is None:
        return request.scope.scheme
    return "https" if forwarded.partition(",")[0].strip() == "https" else "http"


def _user_id(text: str) -> int | None:
    return None if text.startswith("0") else number_in(text)


def _since(query: str) -> int | None:
    name, _, value = query.partition("=")
    if name != "since":
        return None
    try:
        return since_of(value)
    except APIException:
        return None


def _request_id(request: Request) -> str:
    given = request.headers.get("x-request-id")
    if given and correlation.is_request_id(given):
        return given
    return f"{random.getrandbits(128):032x}"


def _kafka_headers(request: Request, request_id: str) -> list[tuple[str, bytes]]:
    headers = request.headers
    return correlation.kafka_headers(
        request_id, headers.get("traceparent") or "", headers.get("tracestate") or ""
    )


def _allow(kind: type[APIView]) -> str:
    view = kind()
    view.setup(HttpRequest())  # which gives a view with GET its HEAD
    return ", ".join(view.allowed_methods)


def _common_headers(scheme: str) -> HeaderList:
    """Return the headers that Django's own middleware gives every answer."""
    request = HttpRequest()
    request.META = {
        "SERVER_NAME": "localhost",
        "SERVER_PORT": "80",
        "HTTP_X_FORWARDED_PROTO": scheme,
    }
    response = HttpResponse()
    for middleware in (XFrameOptionsMiddleware, SecurityMiddleware):
        response = middleware(lambda _request: HttpResponse()).process_response(request, response)
    return [
        (name.lower(), value) for name, value in response.items() if name.lower() != "content-type"
    ]
