"""The shapes of requests and answers, for the OpenAPI document, which drops the `Schema` that some
names end in.
"""

from typing import Any

from drf_spectacular.utils import (
    PolymorphicProxySerializer,
    extend_schema_field,
    extend_schema_serializer,
)
from rest_framework import serializers

from posts.documented import ID_PATTERN

EVENT = "what became of it is told at `/events/{event_id}`"
DATA = (
    "a JSON object of yours: at most 8 KiB of compact JSON, 8 levels deep; no NUL character, no key"
    " twice; numbers of 1e-20 to 2^53-1"
)


class Id(serializers.RegexField):
    """An id: a decimal string of 1 to 2^63-1."""

    def __init__(self, **options: Any) -> None:
        super().__init__(ID_PATTERN, **options)


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
    id = Id()
    author_id = Id()
    content = serializers.CharField()
    data = serializers.DictField(allow_null=True)  # type: ignore[assignment]
    created_at = serializers.DateTimeField()
    edited_at = serializers.DateTimeField(allow_null=True, help_text="of its last edit")


class MissingPostSchema(serializers.Serializer[object]):
    id = Id()
    state = serializers.ChoiceField(["deleted", "unknown"])


@extend_schema_field(
    PolymorphicProxySerializer(
        component_name="PostOrMissing",
        serializers=[PostSchema, MissingPostSchema],
        resource_type_field_name=None,
        many=True,
    )
)
class PostsOrMissing(serializers.ListField):
    pass


class PostsByIdSchema(serializers.Serializer[object]):
    results = PostsOrMissing(help_text="an entry for each id, in the order asked")


class AcceptedPost(PostSchema):
    event_id = Id(help_text=EVENT)


class AcceptedEdit(EditPost):
    event_id = Id(help_text=EVENT)
    id = Id()
    edited_at = serializers.DateTimeField()


class AcceptedSchema(serializers.Serializer[object]):
    event_id = Id(help_text=EVENT)


class AcceptedDeletion(AcceptedSchema):
    id = Id(help_text="of the post")


class AcceptedFollow(AcceptedSchema):
    follower_id = Id()
    followee_id = Id()


class AcceptedMute(AcceptedSchema):
    user_id = Id()
    muted_id = Id()


class AcceptedBlock(AcceptedSchema):
    blocker_id = Id()
    blocked_id = Id()


class AcceptedErasure(AcceptedSchema):
    user_id = Id()


@extend_schema_serializer(many=False)
class ListSchema(serializers.Serializer[object]):
    next = serializers.URLField(allow_null=True)
    previous = serializers.URLField(allow_null=True)
    next_cursor = serializers.CharField(allow_null=True, help_text="the `cursor` in `next`")
    previous_cursor = serializers.CharField(allow_null=True, help_text="the `cursor` in `previous`")


class PostList(ListSchema):
    results = PostSchema(many=True)


class FeedSchema(PostList):
    """Also of a feed's first page alone: how far its user has seen it."""

    seen = Id(
        required=False,
        allow_null=True,
        help_text="of the first page: the post up to which the user has seen the feed, if any",
    )
    unread = serializers.IntegerField(
        required=False,
        allow_null=True,
        min_value=0,
        max_value=100,
        help_text="of the first page: how many posts are newer than `seen`; 100 is 100 or more",
    )


class NewSeen(serializers.Serializer[object]):
    post_id = Id(help_text="the newest post that was shown")


class AcceptedSeen(AcceptedSchema):
    user_id = Id()
    post_id = Id()


class UserSchema(serializers.Serializer[object]):
    user_id = Id()


class UserList(ListSchema):
    results = UserSchema(many=True)


class NewPostsSchema(serializers.Serializer[object]):
    count = serializers.IntegerField(min_value=0, max_value=100)
    newest_id = Id(allow_null=True)


class NewFollows(serializers.Serializer[object]):
    followee_ids = serializers.ListField(
        child=Id(), min_length=1, max_length=100, help_text="user ids"
    )


class FollowEntry(serializers.Serializer[object]):
    followee_id = Id()
    event_id = Id(required=False)
    code = serializers.ChoiceField(
        ["cannot_follow_oneself", "follow_blocked"],
        required=False,
        help_text="why this one was not accepted",
    )
    detail = serializers.CharField(required=False)


class FollowEntries(serializers.Serializer[object]):
    results = FollowEntry(many=True, help_text="an entry for each id, in the order asked")
