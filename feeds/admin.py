"""Feeds in the admin: one row a user; the inspector of a user's feed; whom a user follows,
is followed by, has muted and has blocked.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db import DatabaseError
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import URLPattern, path, reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from eventbus import cell_pages, cells
from eventbus.admin import LargeTableAdmin, id_of
from eventbus.exceptions import IdsUnavailable, PublishFailed
from eventbus.ids import idempotency
from eventbus.ids.snowflake import MAX_ID
from eventbus.models import Erasure
from feeds import blocks, inspector, mutes, services, verification
from feeds import rebuild as rebuilding
from feeds.models import Feed, Follow, Mute
from feeds.read import here
from feeds.verification import Report
from posts.models import Block
from posts.pagination import Position

FOLLOWS_SHOWN = 100
MAY_CHANGE = "feeds.change_feed"
MAY_READ = "posts.view_post"
MAY_ERASE = "feeds.erase_user"


@admin.register(Feed)
class FeedAdmin(LargeTableAdmin):
    list_display = [
        "user_id",
        "inspect",
        "floor",
        "idle",
        "last_read_at",
        "follower_count",
        "pulled_since",
    ]
    search_help_text = "A user id: opens the inspector of that user's feed."

    def get_urls(self) -> list[URLPattern]:
        view = self.admin_site.admin_view
        return [
            path("follows/", view(self.follows_view), name="feeds_feed_follows"),
            path("<id:user_id>/inspect/", view(self.inspect_view), name="feeds_feed_inspect"),
            path("<id:user_id>/erase/", view(self.erase_view), name="feeds_feed_erase"),
            *super().get_urls(),
        ]

    @admin.display(description="inspector")
    def inspect(self, feed: Feed) -> SafeString:
        return format_html(
            '<a href="{}">inspect feed of {}</a>', _inspect_url(feed.user_id), feed.user_id
        )

    def changelist_view(
        self, request: HttpRequest, extra_context: dict[str, Any] | None = None
    ) -> HttpResponse:
        # Also users without a row can be looked at.
        user_id = id_of(request.GET.get("q", "").strip())
        if user_id is not None and self.has_view_permission(request):
            return HttpResponseRedirect(_inspect_url(user_id))
        return super().changelist_view(request, extra_context)

    def change_view(
        self, request: HttpRequest, object_id: str, *args: Any, **kwargs: Any
    ) -> HttpResponse:
        # The log of actions leads here, for all cells.
        user_id = id_of(object_id)
        if user_id is not None and (way := cell_pages.elsewhere(request, user_id)):
            return way
        return super().change_view(request, object_id, *args, **kwargs)

    def inspect_view(self, request: HttpRequest, user_id: int) -> HttpResponse:
        """Show a user's feed as stored and as defined; a POST acts on it and comes back here."""
        self._require_view(request)
        if way := cell_pages.elsewhere(request, user_id):
            return way
        if request.method == "POST":
            self._act(request, user_id)
            return HttpResponseRedirect(_inspect_url(user_id))
        inspection = inspector.inspect(user_id)
        context = {
            **self.admin_site.each_context(request),
            "title": f"Feed of user {user_id}",
            "opts": self.opts,
            "inspection": inspection,
            "shown": inspector.SHOWN,
            "counts": [
                (source, inspection.count(source))
                for source in ("pushed", "pulled", "past the floor")
            ],
            "may_change": request.user.has_perm(MAY_CHANGE),
            "may_read": request.user.has_perm(MAY_READ),
            "may_erase": request.user.has_perm(MAY_ERASE),
            "erasure": Erasure.objects.filter(user_id=user_id).first(),
        }
        return TemplateResponse(request, "admin/feeds/feed/inspect.html", context)

    def erase_view(self, request: HttpRequest, user_id: int) -> HttpResponse:
        """Ask whether to erase a user; a POST with the user's id typed in does it."""
        if not request.user.has_perm(MAY_ERASE):
            raise PermissionDenied
        if way := cell_pages.elsewhere(request, user_id):
            return way
        is_wrong = False
        if request.method == "POST":
            if id_of(request.POST.get("user_id", "").strip()) == user_id:
                self._erase(request, user_id)
                return HttpResponseRedirect(_inspect_url(user_id))
            is_wrong = True
        context = {
            **self.admin_site.each_context(request),
            "title": f"Erase user {user_id}",
            "opts": self.opts,
            "user_id": user_id,
            "feed": Feed.objects.filter(user_id=user_id).first(),
            "is_wrong": is_wrong,
        }
        return TemplateResponse(request, "admin/feeds/feed/erase.html", context)

    def _erase(self, request: HttpRequest, user_id: int) -> None:
        try:
            fact = services.erase_user(user_id=user_id, actor_id=user_id, ids=idempotency.fresh())
        except (PublishFailed, IdsUnavailable) as error:
            self.message_user(request, f"Not done: {error}", messages.ERROR)
            return
        what = f"Erasure asked for, as event {fact.event_id}."
        self._tell(request, user_id, what, messages.SUCCESS)

    def follows_view(self, request: HttpRequest) -> HttpResponse:
        """Show whom a user follows, who follows them, whom they have muted and blocked, or one pair with its
        last event.
        """
        self._require_view(request)
        user_id, other_id = id_of(request.GET.get("user", "")), id_of(request.GET.get("other", ""))
        if user_id is not None and (way := cell_pages.elsewhere(request, user_id)):
            return way
        context = {
            **self.admin_site.each_context(request),
            "title": "Follows" if user_id is None else f"Follows of user {user_id}",
            "opts": self.opts,
            "user_id": user_id,
            "other_id": other_id,
            "wrong": any(
                request.GET.get(name) and id_of(request.GET[name]) is None
                for name in ("user", "other")
            ),
        }
        if user_id is not None and other_id is not None:
            context["pairs"] = [_pair(user_id, other_id), _pair(other_id, user_id)]
        elif user_id is not None:
            context["lists"] = [
                _follow_list(request, "following", user_id, Follow.objects.following_page),
                _follow_list(request, "followers", user_id, Follow.objects.followers_page),
                _follow_list(request, "muted", user_id, mutes.muted_page),
                _follow_list(request, "blocked", user_id, blocks.blocked_page),
            ]
        return TemplateResponse(request, "admin/feeds/feed/follows.html", context)

    def _require_view(self, request: HttpRequest) -> None:
        if not self.has_view_permission(request):
            raise PermissionDenied

    def _act(self, request: HttpRequest, user_id: int) -> None:
        acts: dict[str, Callable[[HttpRequest, int], None]] = {
            "verify": self._verify,
            "rebuild": self._rebuild,
            "drop": self._drop_cache,
        }
        try:
            act = acts[request.POST.get("action", "")]
        except KeyError:
            self.message_user(request, "No such action.", messages.ERROR)
            return
        if act != self._verify and not request.user.has_perm(MAY_CHANGE):
            raise PermissionDenied
        try:
            act(request, user_id)
        except DatabaseError as error:
            self.message_user(request, f"Not done, PostgreSQL says: {error}", messages.ERROR)

    def _verify(self, request: HttpRequest, user_id: int) -> None:
        report = verification.verify([user_id])
        level = messages.SUCCESS if report.equal else messages.ERROR
        self._tell(request, user_id, _verdict(report), level)

    def _rebuild(self, request: HttpRequest, user_id: int) -> None:
        if not Feed.objects.filter(user_id=user_id).exists():
            self.message_user(
                request, "There is no feed to rebuild: the user is not known.", messages.WARNING
            )
            return
        rebuilding.rebuild([user_id])
        self._tell(request, user_id, "Rebuilt.", messages.SUCCESS)

    def _drop_cache(self, request: HttpRequest, user_id: int) -> None:
        here.pages.invalidate([user_id])
        self._tell(request, user_id, "Cached page dropped.", messages.SUCCESS)

    def _tell(self, request: HttpRequest, user_id: int, what: str, level: int) -> None:
        self.log_change(request, Feed(user_id=user_id), what)
        self.message_user(request, what, level)


def _inspect_url(user_id: int) -> str:
    return reverse("admin:feeds_feed_inspect", args=[user_id])


def _verdict(report: Report) -> str:
    if report.equal:
        return f"Verified: {report.entries} stored entries equal the definition."
    found = f"{report.missing} missing, {report.extra} extra, {report.duplicate} duplicate entries"
    first = ", ".join(f"{difference.kind} {difference.post_id}" for difference in report.first[:5])
    state = "; the row in feeds or follows is wrong" if report.wrong_states else ""
    return f"Differs: {found}{state}{'. First: ' if first else ''}{first}."


class _Pair(NamedTuple):
    """What a user has said of another: the follow, or what it would be, with the mute, and whether
    they block them.
    """

    follow: Follow
    blocks: bool


def _pair(follower_id: int, followee_id: int) -> _Pair:
    # A follow is told by the cell of who follows.
    with cells.on(cells.of(follower_id)):
        return _pair_here(follower_id, followee_id)


def _pair_here(follower_id: int, followee_id: int) -> _Pair:
    pair = {"follower_id": follower_id, "followee_id": followee_id}
    found = Follow.objects.filter(**pair).first() or Follow(**pair, active=False)
    # Also where there is no follow for it to be repeated on.
    mute = Mute.objects.filter(user_id=follower_id, muted_id=followee_id).first()
    found.muted = mute is not None and mute.active
    block = Block.objects.filter(blocker_id=follower_id, blocked_id=followee_id).first()
    return _Pair(found, block is not None and block.in_effect)


def _follow_list(
    request: HttpRequest, name: str, user_id: int, read: Callable[[int, Position, int], list[int]]
) -> dict[str, Any]:
    """Return a page of one direction, by id from the highest, and where the next one starts."""
    parameter = f"{name}_up_to"
    up_to = id_of(request.GET.get(parameter, "")) or MAX_ID
    users: Sequence[int] = read(user_id, Position(up_to, newer=False), FOLLOWS_SHOWN + 1)
    more = (
        f"?user={user_id}&{parameter}={users[FOLLOWS_SHOWN]}" if len(users) > FOLLOWS_SHOWN else ""
    )
    return {"name": name, "users": users[:FOLLOWS_SHOWN], "more": more, "first": up_to == MAX_ID}
