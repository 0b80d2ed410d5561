"""The feed and follow API."""

from collections.abc import Callable
from functools import partial

import orjson
from django.http import HttpResponse
from drf_spectacular.utils import extend_schema
from rest_framework.exceptions import PermissionDenied
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from eventbus import metrics
from feeds import cache, services, timeline
from feeds.events import FollowFact
from feeds.models import Follow
from posts import pagination
from posts.errors import Unprocessable
from posts.pagination import Page, Position
from posts.principal import principal
from posts.schemas import AcceptedSchema, PostList, UserList
from posts.views import IDEMPOTENCY, PAGING, accepted, event_headers, list_response, post_json, write_ids

READ_ANY_FEED = "feeds:read"


class FeedView(APIView):
    @extend_schema(parameters=PAGING, responses={200: PostList})
    def get(self, request: Request, user_id: int) -> HttpResponse:
        """Read a feed, newest first. `X-Cache` says whether the first page came from the cache."""
        _require_reader(request, user_id)
        position, limit = pagination.position_of(request), pagination.limit_of(request)
        if position != pagination.START or limit != pagination.DEFAULT_LIMIT:
            body, result = _render(_page(user_id, position, limit)), "bypass"
        else:
            body, result = _first_page(user_id)
        metrics.feed_cache_requests_total.labels(result).inc()
        return HttpResponse(_with_links(request, body), content_type="application/json", headers={"X-Cache": result})


class FollowView(APIView):
    @extend_schema(request=None, parameters=[IDEMPOTENCY], responses={202: AcceptedSchema})
    def put(self, request: Request, user_id: int) -> HttpResponse:
        """Follow a user; doing it again changes nothing."""
        return self._publish(request, user_id, services.follow)

    @extend_schema(request=None, parameters=[IDEMPOTENCY], responses={202: AcceptedSchema})
    def delete(self, request: Request, user_id: int) -> HttpResponse:
        """Unfollow a user; doing it again changes nothing."""
        return self._publish(request, user_id, services.unfollow)

    def _publish(self, request: Request, user_id: int, act: Callable[..., FollowFact]) -> HttpResponse:
        if user_id == principal(request).user_id:
            raise Unprocessable("Nobody can follow themselves.", code="cannot_follow_oneself")
        fact = act(
            follower_id=principal(request).user_id,
            followee_id=user_id,
            ids=write_ids(request),
            headers=event_headers(request),
        )
        return accepted(fact.event_id, follower_id=str(fact.follower_id), followee_id=str(fact.followee_id))


class FollowersView(APIView):
    @extend_schema(parameters=PAGING, responses={200: UserList})
    def get(self, request: Request, user_id: int) -> Response:
        """List who follows a user, by id from the highest."""
        return _users(request, partial(Follow.objects.followers_page, user_id))


class FollowingView(APIView):
    @extend_schema(parameters=PAGING, responses={200: UserList})
    def get(self, request: Request, user_id: int) -> Response:
        """List whom a user follows, by id from the highest."""
        return _users(request, partial(Follow.objects.following_page, user_id))


def _require_reader(request: Request, user_id: int) -> None:
    if user_id != principal(request).user_id and READ_ANY_FEED not in principal(request).scopes:
        raise PermissionDenied(f"Reading someone else's feed needs the scope {READ_ANY_FEED}.", code="not_your_feed")


def _first_page(user_id: int) -> tuple[bytes, str]:
    """Return the first page and how it was had: cached, or read and cached on the way (cache-aside)."""
    lookup = cache.look_up(user_id)
    if lookup.result == "hit":
        return lookup.page, "hit"
    body = _render(_page(user_id, pagination.START, pagination.DEFAULT_LIMIT))
    cache.store(lookup, body)
    return body, lookup.result


def _page(user_id: int, position: Position, limit: int) -> Page:
    return pagination.paginate(partial(timeline.read, user_id), lambda row: row.id, position, limit)


# A rendered page is the cursors of its neighbours and the JSON of its rows; the links depend on the host name that the
# request came by, so they are put in last.


def _render(page: Page) -> bytes:
    cursors = [position.encode() if position else "" for position in (page.next, page.previous)]
    return b"\n".join([*(cursor.encode() for cursor in cursors), orjson.dumps([post_json(row) for row in page.rows])])


def _with_links(request: Request, body: bytes) -> bytes:
    following, previous, results = body.split(b"\n", 2)
    links = (
        orjson.dumps(pagination.link_to(request, cursor.decode()) if cursor else None)
        for cursor in (following, previous)
    )
    return b'{"results":%b,"next":%b,"previous":%b}' % (results, *links)


def _users(request: Request, read: Callable[[Position, int], list[int]]) -> Response:
    page = pagination.paginate(
        read, lambda user_id: user_id, pagination.position_of(request), pagination.limit_of(request)
    )
    return list_response(request, page, lambda user_id: {"user_id": str(user_id)})
