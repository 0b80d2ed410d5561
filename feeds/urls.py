from django.urls import path

from feeds.bulk import FollowsView
from feeds.user_views import ExportView, UserView
from feeds.views import (
    BlocksView,
    BlockView,
    FeedView,
    FollowersView,
    FollowingView,
    FollowView,
    LiveView,
    MutesView,
    MuteView,
    NewPostsView,
    SeenView,
)

urlpatterns = [
    path("feeds/<id:user_id>", FeedView.as_view(), name="feed"),
    path("feeds/<id:user_id>/new", NewPostsView.as_view(), name="new-posts"),
    path("feeds/<id:user_id>/seen", SeenView.as_view(), name="seen"),
    path("feeds/<id:user_id>/live", LiveView.as_view(), name="live"),
    path("follows", FollowsView.as_view(), name="follows"),
    path("follows/<id:user_id>", FollowView.as_view(), name="follow"),
    path("blocks", BlocksView.as_view(), name="blocks"),
    path("blocks/<id:user_id>", BlockView.as_view(), name="block"),
    path("mutes", MutesView.as_view(), name="mutes"),
    path("mutes/<id:user_id>", MuteView.as_view(), name="mute"),
    path("users/<id:user_id>", UserView.as_view(), name="user"),
    path("users/<id:user_id>/export", ExportView.as_view(), name="export"),
    path("users/<id:user_id>/followers", FollowersView.as_view(), name="followers"),
    path("users/<id:user_id>/following", FollowingView.as_view(), name="following"),
]
