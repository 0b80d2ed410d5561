from django.urls import path

from posts.views import PostsView, PostView, UserPostsView

urlpatterns = [
    path("posts", PostsView.as_view(), name="posts"),
    path("posts/<id:post_id>", PostView.as_view(), name="post"),
    path("users/<id:user_id>/posts", UserPostsView.as_view(), name="posts"),
]
