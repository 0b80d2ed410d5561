"""The shapes of requests and answers, for the OpenAPI document, which drops the `Schema` that some
names end in.
"""

from typing import Any

from drf_spectacular.utils import extend_schema_serializer
from rest_framework import serializers

from posts.documented import ID_PATTERN


class Id(serializers.RegexField):
    """An id: a decimal string of 1 to 2^63-1."""

    def __init__(self, **options: Any) -> None:
        super().__init__(ID_PATTERN, **options)


class NewPost(serializers.Serializer[object]):
    content = serializers.CharField(
        min_length=1, max_length=5_000, help_text="trimmed; no NUL character"
    )


class PostSchema(serializers.Serializer[object]):
    id = Id()
    author_id = Id()
    content = serializers.CharField()
    created_at = serializers.DateTimeField()


class AcceptedSchema(serializers.Serializer[object]):
    event_id = Id(help_text="what became of it is told at `/events/{event_id}`")


class AcceptedPost(PostSchema):
    event_id = Id(help_text="what became of it is told at `/events/{event_id}`")


class AcceptedDeletion(AcceptedSchema):
    id = Id(help_text="of the post")


class AcceptedFollow(AcceptedSchema):
    follower_id = Id()
    followee_id = Id()


@extend_schema_serializer(many=False)
class ListSchema(serializers.Serializer[object]):
    next = serializers.URLField(allow_null=True)
    previous = serializers.URLField(allow_null=True)
    next_cursor = serializers.CharField(allow_null=True, help_text="the `cursor` in `next`")
    previous_cursor = serializers.CharField(allow_null=True, help_text="the `cursor` in `previous`")


class PostList(ListSchema):
    results = PostSchema(many=True)


class UserSchema(serializers.Serializer[object]):
    user_id = Id()


class UserList(ListSchema):
    results = UserSchema(many=True)


class NewPostsSchema(serializers.Serializer[object]):
    count = serializers.IntegerField(min_value=0, max_value=100)
    newest_id = Id(allow_null=True)
