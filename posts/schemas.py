"""The shapes of requests and answers, for the OpenAPI document."""

from drf_spectacular.utils import extend_schema_serializer
from rest_framework import serializers

DATA = (
    "a JSON object of yours: at most 8 KiB of compact JSON, 8 levels deep; no NUL character, no key"
    " twice; numbers of 1e-20 to 2^53-1"
)


class NewPost(serializers.Serializer[object]):
    content = serializers.CharField(
        required=False,
        max_length=5_000,
        help_text="trimmed; no NUL character; empty only with data",
    )
    data = serializers.DictField(  # type: ignore[assignment]  # a field, and no property then
        required=False, allow_null=True, help_text=DATA
    )


class EditPost(serializers.Serializer[object]):
    content = serializers.CharField(
        required=False, max_length=5_000, help_text="as of a new post; absent: it stays"
    )
    data = serializers.DictField(  # type: ignore[assignment]
        required=False, allow_null=True, help_text="as of a new post; null: none; absent: it stays"
    )


class PostSchema(serializers.Serializer[object]):
    id = serializers.CharField()
    author_id = serializers.CharField()
    content = serializers.CharField()
    data = serializers.DictField(allow_null=True)  # type: ignore[assignment]
    created_at = serializers.DateTimeField()
    edited_at = serializers.DateTimeField(allow_null=True, help_text="of its last edit")


class AcceptedPost(PostSchema):
    event_id = serializers.CharField()


class AcceptedEdit(EditPost):
    event_id = serializers.CharField()
    id = serializers.CharField()
    edited_at = serializers.DateTimeField()


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
