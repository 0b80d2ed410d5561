"""The feed and follow API."""

from collections.abc import Callable
from functools import partial

from django.http import HttpResponse
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiParameter
from rest_framework.exceptions import APIException, ParseError, PermissionDenied
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from eventbus import metrics
from eventbus.ids.snowflake import id_in, number_in
from feeds import blocks, mutes, seen, services
from feeds.events import BlockFact, FollowFact, MuteFact
from feeds.models import Follow
from feeds.read import first_page
from feeds.read.page import with_links
from posts import pagination, visibility
from posts.documented import PAGING, PAGING_ERRORS, X_CACHE, documented
from posts.errors import Unprocessable
from posts.pagination import Position
from posts.principal import Principal, principal
from posts.rates import WriteRate
from posts.schemas import (
    AcceptedBlock,
    AcceptedFollow,
    AcceptedMute,
    AcceptedSeen,
    FeedSchema,
    NewPostsSchema,
    NewSeen,
    UserList,
)
from posts.views import (
    accepted,
    event_headers,
    json_of,
    list_response,
    object_in,
    write_ids,
)
from posts.visibility import READ_ANY_FEED

LIST_ERRORS = ["not_your_follows", *PAGING_ERRORS]
POST_ID_OR_0 = {"type": "string", "pattern": "^(0|[1-9][0-9]{0,18})$"}
SINCE = OpenApiParameter(
    "since",
    POST_ID_OR_0,
    description="a post id; 0 counts from the first post. Without it those unread are counted",
)
LIVE_SINCE = OpenApiParameter("since", POST_ID_OR_0, description="a post id, as in `Last-Event-ID`")
LAST_EVENT_ID = OpenApiParameter(
    "Last-Event-ID",
    POST_ID_OR_0,
    OpenApiParameter.HEADER,
    description="the `id` of the last event of an earlier stream",
)


class FeedView(APIView):
    @documented(
        "read_feed",
        {200: FeedSchema},
        parameters=[*PAGING, X_CACHE],
        errors=["not_your_feed", *PAGING_ERRORS],
    )
    def get(self, request: Request, user_id: int) -> HttpResponse:
        """Read a feed, newest first. `X-Cache` says whether the first page came from the cache.

        The first page says up to which post it was `seen` and how many are `unread`, at most 100.
        """
        _require_reader(request, user_id)
        position, limit = pagination.position_of(request), pagination.limit_of(request)
        if position == pagination.START and limit == pagination.DEFAULT_LIMIT:
            found = first_page.read(user_id)
            body, result = found.page.body, found.result
        else:
            body, result = first_page.read_body(user_id, position, limit), "bypass"
        metrics.feed_cache_requests_total.labels(result).inc()
        address = f"{request.scheme}://{request.get_host()}{request.path}"
        answer = with_links(body, address, request.query_params.get("limit"))
        return HttpResponse(answer, content_type="application/json", headers={"X-Cache": result})


class NewPostsView(APIView):
    @documented(
        "count_new_posts",
        {200: NewPostsSchema},
        parameters=[SINCE, X_CACHE],
        errors=["not_your_feed", "invalid_since", "nothing_seen"],
    )
    def get(self, request: Request, user_id: int) -> HttpResponse:
        """Tell how many posts of a feed are newer than `since`, up to 100, and which is the
        newest.

        Without `since` those are counted that its user has not seen, see `PUT .../seen`; 409 if
        they have never said so.
        """
        _require_reader(request, user_id)
        given = request.query_params.get("since")
        since = None if given is None else since_of(given)
        body, result = first_page.count_new(user_id, since)
        if body is None:
            raise NothingSeen
        return HttpResponse(body, content_type="application/json", headers={"X-Cache": result})


class NothingSeen(APIException):
    status_code = 409
    default_detail = "This feed was never marked as seen: mark it, or name a post with since."
    default_code = "nothing_seen"


class SeenView(APIView):
    throttle_classes = [WriteRate]

    @documented(
        "mark_feed_seen",
        {202: AcceptedSeen},
        body=NewSeen,
        errors=["not_your_feed", "post_id_required", "invalid_post_id", "post_id_in_the_future"],
    )
    def put(self, request: Request, user_id: int) -> HttpResponse:
        """Mark one's own feed as seen up to a post; one that is marked further stays so."""
        if user_id != principal(request).user_id:
            raise PermissionDenied("A feed is marked by its own user.", code="not_your_feed")
        post_id = seen_post_of(json_of(request))
        fact = services.mark_seen(
            user_id=user_id,
            post_id=post_id,
            ids=write_ids(request, str(post_id)),
            headers=event_headers(request),
        )
        return accepted(
            request, fact.event_id, user_id=str(fact.user_id), post_id=str(fact.post_id)
        )


class LiveUnavailable(APIException):
    status_code = 501
    default_detail = "Live feeds need the API's event loop: API_FRONT, and no spans."
    default_code = "live_unavailable"


class LiveView(APIView):
    @documented(
        "stream_feed",
        {(200, "text/event-stream"): OpenApiTypes.STR},
        parameters=[LIVE_SINCE, LAST_EVENT_ID],
        errors=["not_your_feed", "invalid_since", "live_unavailable", "too_many_streams"],
    )
    def get(self, request: Request, user_id: int) -> HttpResponse:
        """Hear of changes to a feed (server-sent events `new`, `seen`, `changed`, `polling`,
        `live`, `end`).

        `new` tells how many posts are newer than the one named by `Last-Event-ID` or `since`, up
        to 100; without one, than the newest when the stream was opened. `new` and `seen` tell how
        many are unread.
        """
        _require_reader(request, user_id)
        live_since(request.headers.get("Last-Event-ID"), request.query_params.get("since"))
        raise LiveUnavailable


class FollowView(APIView):
    throttle_classes = [WriteRate]

    @documented(
        "follow_user",
        {202: AcceptedFollow},
        errors=["cannot_follow_oneself", "follow_blocked"],
    )
    def put(self, request: Request, user_id: int) -> HttpResponse:
        """Follow a user; doing it again changes nothing. 422 when a block is between the two."""
        if blocks.in_the_way(principal(request).user_id, [user_id]):
            raise Unprocessable(blocks.IN_THE_WAY, code="follow_blocked")
        return self._publish(request, user_id, services.follow)

    @documented("unfollow_user", {202: AcceptedFollow}, errors=["cannot_follow_oneself"])
    def delete(self, request: Request, user_id: int) -> HttpResponse:
        """Unfollow a user; doing it again changes nothing."""
        return self._publish(request, user_id, services.unfollow)

    def _publish(
        self, request: Request, user_id: int, act: Callable[..., FollowFact]
    ) -> HttpResponse:
        if user_id == principal(request).user_id:
            raise Unprocessable("Nobody can follow themselves.", code="cannot_follow_oneself")
        fact = act(
            follower_id=principal(request).user_id,
            followee_id=user_id,
            ids=write_ids(request),
            headers=event_headers(request),
        )
        return accepted(
            request,
            fact.event_id,
            follower_id=str(fact.follower_id),
            followee_id=str(fact.followee_id),
        )


class BlockView(APIView):
    throttle_classes = [WriteRate]

    @documented("block_user", {202: AcceptedBlock}, errors=["cannot_block_oneself"])
    def put(self, request: Request, user_id: int) -> HttpResponse:
        """Block a user: it ends the follows between the two, prevents new ones, and neither sees
        posts or lists of the other. Doing it again changes nothing.
        """
        return self._publish(request, user_id, services.block)

    @documented("unblock_user", {202: AcceptedBlock}, errors=["cannot_block_oneself"])
    def delete(self, request: Request, user_id: int) -> HttpResponse:
        """Lift one's block of a user; the follows that it ended stay ended. Doing it again changes
        nothing.
        """
        return self._publish(request, user_id, services.unblock)

    def _publish(
        self, request: Request, user_id: int, act: Callable[..., BlockFact]
    ) -> HttpResponse:
        if user_id == principal(request).user_id:
            raise Unprocessable("Nobody can block themselves.", code="cannot_block_oneself")
        fact = act(
            blocker_id=principal(request).user_id,
            blocked_id=user_id,
            ids=write_ids(request),
            headers=event_headers(request),
        )
        return accepted(
            request,
            fact.event_id,
            blocker_id=str(fact.blocker_id),
            blocked_id=str(fact.blocked_id),
        )


class BlocksView(APIView):
    @documented("list_blocked", {200: UserList}, parameters=PAGING, errors=PAGING_ERRORS)
    def get(self, request: Request) -> Response:
        """List whom one has blocked, by id from the highest."""
        return _users(request, partial(blocks.blocked_page, principal(request).user_id))


class MuteView(APIView):
    throttle_classes = [WriteRate]

    @documented("mute_user", {202: AcceptedMute}, errors=["cannot_mute_oneself"])
    def put(self, request: Request, user_id: int) -> HttpResponse:
        """Mute a user: one's feed is without their posts, followed or not, and nobody else learns of
        it. Doing it again changes nothing.
        """
        return self._publish(request, user_id, services.mute)

    @documented("unmute_user", {202: AcceptedMute}, errors=["cannot_mute_oneself"])
    def delete(self, request: Request, user_id: int) -> HttpResponse:
        """Lift a mute: all posts of a followed user are back. Doing it again changes nothing."""
        return self._publish(request, user_id, services.unmute)

    def _publish(
        self, request: Request, user_id: int, act: Callable[..., MuteFact]
    ) -> HttpResponse:
        if user_id == principal(request).user_id:
            raise Unprocessable("Nobody can mute themselves.", code="cannot_mute_oneself")
        fact = act(
            user_id=principal(request).user_id,
            muted_id=user_id,
            ids=write_ids(request),
            headers=event_headers(request),
        )
        return accepted(
            request, fact.event_id, user_id=str(fact.user_id), muted_id=str(fact.muted_id)
        )


class MutesView(APIView):
    @documented("list_muted", {200: UserList}, parameters=PAGING, errors=PAGING_ERRORS)
    def get(self, request: Request) -> Response:
        """List whom one has muted, by id from the highest."""
        return _users(request, partial(mutes.muted_page, principal(request).user_id))


class FollowersView(APIView):
    @documented("list_followers", {200: UserList}, parameters=PAGING, errors=LIST_ERRORS)
    def get(self, request: Request, user_id: int) -> Response:
        """List who follows a user, by id from the highest; one's own list, or with `feeds:read`
        anyone's.
        """
        _require_knower(request, user_id)
        return _users_of(request, user_id, Follow.objects.followers_page)


class FollowingView(APIView):
    @documented("list_following", {200: UserList}, parameters=PAGING, errors=LIST_ERRORS)
    def get(self, request: Request, user_id: int) -> Response:
        """List whom a user follows, by id from the highest; one's own list, or with `feeds:read`
        anyone's.
        """
        _require_knower(request, user_id)
        return _users_of(request, user_id, Follow.objects.following_page)


def may_read(principal: Principal, user_id: int) -> bool:
    """Tell whether someone may read the feed of this user."""
    return user_id == principal.user_id or READ_ANY_FEED in principal.scopes


def _require_reader(request: Request, user_id: int) -> None:
    if not may_read(principal(request), user_id):
        raise PermissionDenied(
            f"Reading someone else's feed needs the scope {READ_ANY_FEED}.", code="not_your_feed"
        )


def _require_knower(request: Request, user_id: int) -> None:
    """Let pass who may know whom the user follows and who follows them: with posts, that is the
    feed.
    """
    if visibility.is_public() or may_read(principal(request), user_id):
        return
    raise PermissionDenied(
        f"Reading someone else's follows needs the scope {READ_ANY_FEED}.", code="not_your_follows"
    )


def since_of(text: str) -> int:
    """Return the post id that `?since=` names; 0 comes before the first. Raises `ParseError`."""
    since = number_in(text)
    if since is None:
        raise ParseError("since must be a post id.", code="invalid_since")
    return since


def seen_post_of(body: object) -> int:
    """Return the post up to which the JSON `body` says a feed was seen. Raises `Unprocessable`."""
    fields = object_in(body)
    if "post_id" not in fields:
        raise Unprocessable("post_id must be there.", code="post_id_required")
    post_id = id_in(fields["post_id"])
    if post_id is None:
        raise Unprocessable("post_id must be a decimal string.", code="invalid_post_id")
    if seen.is_ahead(post_id):
        raise Unprocessable("post_id is from the future.", code="post_id_in_the_future")
    return post_id


def live_since(last_event_id: str | None, since: str | None) -> int | None:
    """Return the post that a stream goes on from; None: from now. Raises `ParseError`."""
    named = last_event_id if last_event_id else since
    return None if named is None else since_of(named)


def _users_of(
    request: Request, user_id: int, read: Callable[[int, Position, int], list[int]]
) -> Response:
    """Return a list about a user; empty where a block is between them and who asks."""
    if visibility.is_hidden(principal(request), user_id):
        return _users(request, pagination.nothing)
    return _users(request, partial(read, user_id))


def _users(request: Request, read: Callable[[Position, int], list[int]]) -> Response:
    page = pagination.paginate(
        read, lambda user_id: user_id, pagination.position_of(request), pagination.limit_of(request)
    )
    return list_response(request, page, lambda user_id: {"user_id": str(user_id)})
