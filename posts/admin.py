"""Posts in the admin: found by id, never counted."""

from datetime import datetime
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet

from eventbus.admin import LargeTableAdmin, id_of
from eventbus.ids.snowflake import time_of
from posts.models import Post, WaitingEdit

BY_AUTHOR = "author:"


@admin.register(Post)
class PostAdmin(LargeTableAdmin):
    list_display = ["id", "author_id", "beginning", "created_at", "edited_at", "fanout", "deleted"]
    search_help_text = (
        f"A post id, or {BY_AUTHOR}ID for the posts of an author that are not deleted."
    )

    def search(self, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        if not term.startswith(BY_AUTHOR):
            return super().search(queryset, term)
        author_id = id_of(term.removeprefix(BY_AUTHOR).strip())
        # Deleted posts are in no index by author.
        return (
            queryset.none()
            if author_id is None
            else queryset.filter(author_id=author_id, deleted_event_id=None)
        )

    @admin.display(description="content")
    def beginning(self, post: Post) -> str:
        return post.content[:80]

    @admin.display
    def edited_at(self, post: Post) -> datetime | None:
        return None if post.edited_event_id is None else time_of(post.edited_event_id)

    @admin.display(boolean=True)
    def deleted(self, post: Any) -> bool:
        return post.deleted_event_id is not None


@admin.register(WaitingEdit)
class WaitingEditAdmin(LargeTableAdmin):
    """Edits that came before their post; their event's id is what they are found by."""

    list_display = ["event_id", "post_id", "author_id"]
    search_help_text = "An event id."
