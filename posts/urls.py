from django.urls import path

from posts import converters as _converters  # noqa: F401 - registers <id:…>
from posts.views import PostsView, PostView, UserPostsView

urlpatterns = [
    path("posts", PostsView.as_view()),
    path("posts/<id:post_id>", PostView.as_view()),
    path("users/<id:user_id>/posts", UserPostsView.as_view()),
]
