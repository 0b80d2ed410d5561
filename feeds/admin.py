"""Feeds in the admin: one row a user."""

from django.contrib import admin

from eventbus.admin import ReadOnlyAdmin
from feeds.models import Feed


@admin.register(Feed)
class FeedAdmin(ReadOnlyAdmin):
    list_display = ["user_id", "follower_count", "floor"]
    ordering = ["user_id"]
    search_fields = ["=user_id"]
