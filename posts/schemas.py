"""The shapes of requests and answers, for the OpenAPI document."""

from drf_spectacular.utils import extend_schema_serializer
from rest_framework import serializers


class NewPost(serializers.Serializer[object]):
    content = serializers.CharField(
        min_length=1, max_length=5_000, help_text="trimmed; no NUL character"
    )


class PostSchema(serializers.Serializer[object]):
    id = serializers.CharField()
    author_id = serializers.CharField()
    content = serializers.CharField()
    created_at = serializers.DateTimeField()


class AcceptedPost(PostSchema):
    event_id = serializers.CharField()


class AcceptedSchema(serializers.Serializer[object]):
    event_id = serializers.CharField()


@extend_schema_serializer(many=False)
class ListSchema(serializers.Serializer[object]):
    next = serializers.URLField(allow_null=True)
    previous = serializers.URLField(allow_null=True)


class PostList(ListSchema):
    results = PostSchema(many=True)


class UserSchema(serializers.Serializer[object]):
    user_id = serializers.CharField()


class UserList(ListSchema):
    results = UserSchema(many=True)


class NewPostsSchema(serializers.Serializer[object]):
    count = serializers.IntegerField(max_value=100)
    newest_id = serializers.CharField(allow_null=True)
