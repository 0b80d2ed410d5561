from django.urls import path

from feeds.views import FeedView, FollowersView, FollowingView, FollowView, NewPostsView

urlpatterns = [
    path("feeds/<id:user_id>", FeedView.as_view(), name="feed"),
    path("feeds/<id:user_id>/new", NewPostsView.as_view(), name="new-posts"),
    path("follows/<id:user_id>", FollowView.as_view(), name="follow"),
    path("users/<id:user_id>/followers", FollowersView.as_view(), name="followers"),
    path("users/<id:user_id>/following", FollowingView.as_view(), name="following"),
]
