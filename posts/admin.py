"""Posts in the admin: found by id, never counted."""

from typing import Any

from django.contrib import admin

from eventbus.admin import ReadOnlyAdmin
from posts.models import Post


@admin.register(Post)
class PostAdmin(ReadOnlyAdmin):
    list_display = ["id", "author_id", "beginning", "created_at", "deleted"]
    ordering = ["-id"]
    search_fields = ["=id", "=author_id"]

    @admin.display(description="content")
    def beginning(self, post: Post) -> str:
        return post.content[:80]

    @admin.display(boolean=True)
    def deleted(self, post: Any) -> bool:
        return post.deleted_event_id is not None
