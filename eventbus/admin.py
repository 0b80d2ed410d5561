"""Dead letters for operators: what failed, how often and why; replay it or discard it."""

from collections import Counter as Tally
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.contrib.postgres.expressions import ArraySubquery
from django.core.paginator import Paginator
from django.db.models import Count, OuterRef, Q, QuerySet
from django.db.models.expressions import Combinable
from django.http import HttpRequest
from django.template.response import TemplateResponse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString

from eventbus.deadletters import payloads
from eventbus.deadletters import replay as replays
from eventbus.deadletters.replay import Replayed
from eventbus.ids.snowflake import number_in
from eventbus.models import DeadLetter, DeadLetterFailure, DeadLetterGroup, ProcessedEvent
from eventbus.watch import charts

HISTORY_HOURS = 24
HISTORY_FAILURES = 1_000


class ReadOnlyAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """Rows that only the system writes: people look."""

    show_full_result_count = False

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False


class NewestFirst(ChangeList):
    """The rows of the highest keys below `?<key>__lt=`, in key order: one index scan, nothing counted or skipped.

    A table of 10^7 rows is shown as fast as an empty one; an ordering, a count or an offset would read all of it.
    """

    older_than: int | None = None

    def get_ordering(self, request: HttpRequest, queryset: QuerySet[Any]) -> list[str | Combinable]:
        return [f"-{self.lookup_opts.pk.name}"]

    def get_results(self, request: HttpRequest) -> None:
        rows = list(self.queryset[: self.list_per_page + 1])
        self.result_list = rows[: self.list_per_page]
        if len(rows) > self.list_per_page:
            self.older_than = self.result_list[-1].pk
        self.result_count, self.full_result_count = len(self.result_list), None
        self.show_full_result_count = self.show_admin_actions = self.can_show_all = (
            self.multi_page
        ) = False
        self.paginator = Paginator(self.result_list, self.list_per_page)

    @property
    def older_link(self) -> str:
        """Return the query string of the next page, empty on the last one."""
        key = f"{self.lookup_opts.pk.name}__lt"
        return self.get_query_string({key: self.older_than}) if self.older_than is not None else ""

    @property
    def newest_link(self) -> str:
        """Return the query string of the first page, empty on the first one."""
        key = f"{self.lookup_opts.pk.name}__lt"
        return self.get_query_string(remove=[key]) if key in self.params else ""


class LargeTableAdmin(ReadOnlyAdmin):
    """A table too large to count, sort or scan: rows are found by id, and browsed from the highest id down."""

    change_list_template = "admin/eventbus/newest_first.html"
    actions = None
    search_fields = ["pk"]
    sortable_by = ()

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return NewestFirst

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        # Any other would be a way to ask for a full scan.
        return lookup == f"{self.model._meta.pk.name}__lt"

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        # Django's own search compares numbers as text, which no index serves.
        return (
            self.search(queryset, search_term.strip()) if search_term.strip() else queryset
        ), False

    def search(self, queryset: QuerySet[Any], term: str) -> QuerySet[Any]:
        """Return the rows that `term`, not empty, stands for."""
        number = id_of(term)
        return queryset.none() if number is None else queryset.filter(pk=number)


def id_of(text: str) -> int | None:
    """Return the id that `text` is, or None."""
    return number_in(text) or None


class DeadLetterActions(ReadOnlyAdmin):
    """The two actions, each with its own permission and a page to confirm it on."""

    actions = ["replay_selected", "discard_selected"]

    def entries(self, queryset: QuerySet[Any]) -> QuerySet[DeadLetter]:
        """Return the dead letters that the selected rows stand for."""
        raise NotImplementedError

    def has_replay_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("eventbus.replay_deadletter")

    def has_discard_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("eventbus.discard_deadletter")

    @admin.action(description="Replay", permissions=["replay"])
    def replay_selected(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> TemplateResponse | None:
        entries = self.entries(queryset) & DeadLetter.objects.replayable(parked=True, overdue=True)
        if "confirmed" not in request.POST:
            return self._confirm(
                request, queryset, entries, action="replay_selected", verb="Replay"
            )
        ids = list(entries.values_list("id", flat=True))
        totals = Replayed()
        for running_totals in replays.replay(
            ids, parked="parked" in request.POST, overdue="overdue" in request.POST
        ):
            totals = running_totals
        self._log(request, queryset, f"Replayed {totals.acknowledged} dead letters.")
        level = messages.WARNING if totals.failed or totals.skipped else messages.SUCCESS
        told = f"{totals.acknowledged} replayed, {totals.skipped} skipped, {totals.failed} not acknowledged by Kafka."
        self.message_user(request, told, level)
        return None

    @admin.action(description="Discard with a reason", permissions=["discard"])
    def discard_selected(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> TemplateResponse | None:
        entries = self.entries(queryset).filter(state__in=DeadLetter.UNRESOLVED)
        reason = request.POST.get("reason", "").strip()
        if "confirmed" not in request.POST or not reason:
            return self._confirm(
                request, queryset, entries, action="discard_selected", verb="Discard"
            )
        discarded = replays.discard(list(entries.values_list("id", flat=True)), reason=reason)
        self._log(request, queryset, f"Discarded {discarded} dead letters: {reason}")
        self.message_user(request, f"{discarded} discarded.", messages.SUCCESS)
        return None

    def _confirm(
        self,
        request: HttpRequest,
        queryset: QuerySet[Any],
        entries: QuerySet[DeadLetter],
        *,
        action: str,
        verb: str,
    ) -> TemplateResponse:
        context = {
            **self.admin_site.each_context(request),
            "title": f"{verb} dead letters",
            "opts": self.model._meta,
            "action": action,
            "verb": verb,
            "selected": queryset.values_list("pk", flat=True),
            "count": entries.count(),
            "parked": entries.filter(state=DeadLetter.State.PARKED).count(),
            "overdue": entries.filter(state=DeadLetter.State.REPLAYED).count(),
            "reason_missing": "confirmed" in request.POST,
            "examples": entries.order_by("id")[:5],
        }
        return TemplateResponse(request, "admin/eventbus/confirm.html", context)

    def _log(self, request: HttpRequest, queryset: Iterable[Any], what: str) -> None:
        for row in queryset:
            self.log_change(request, row, what)


@admin.register(DeadLetterGroup)
class DeadLetterGroupAdmin(DeadLetterActions):
    list_display = [
        "cause",
        "dead_letters",
        "unresolved",
        "failures",
        "last_day",
        "last_seen",
        "first_seen",
        "message",
    ]
    list_filter = ["event_type"]
    ordering = ["-last_seen"]
    search_fields = ["exception", "message"]

    def entries(self, queryset: QuerySet[DeadLetterGroup]) -> QuerySet[DeadLetter]:
        return DeadLetter.objects.filter(group__in=queryset.values("pk"))

    def get_queryset(self, request: HttpRequest) -> QuerySet[DeadLetterGroup]:
        recent = DeadLetterFailure.objects.filter(
            entry__group=OuterRef("pk"),
            failed_at__gte=timezone.now() - timedelta(hours=HISTORY_HOURS),
        ).order_by("-failed_at")
        groups: QuerySet[DeadLetterGroup] = super().get_queryset(request)
        return groups.annotate(
            open_entries=Count("entries", filter=Q(entries__state__in=DeadLetter.UNRESOLVED)),
            recent=ArraySubquery(recent.values("failed_at")[:HISTORY_FAILURES]),
        )

    @admin.display(description="cause")
    def cause(self, group: DeadLetterGroup) -> str:
        return str(group)

    @admin.display(ordering="open_entries")
    def unresolved(self, group: Any) -> int:
        count: int = group.open_entries
        return count

    @admin.display(description="last 24 hours")
    def last_day(self, group: Any) -> SafeString:
        return sparkline(group.recent, timezone.now())

    @admin.display(description="entries")
    def dead_letters(self, group: DeadLetterGroup) -> SafeString:
        return format_html('<a href="../deadletter/?group__id__exact={}">show</a>', group.pk)


class FailureInline(admin.TabularInline):  # type: ignore[type-arg]
    model = DeadLetterFailure
    fields = ["failed_at", "place", "consumer_group", "exception", "message", "retries", "stack"]
    readonly_fields = ["place", "stack"]
    ordering = ["-failed_at"]
    extra = 0
    can_delete = False

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    @admin.display(description="topic / partition / offset")
    def place(self, failure: DeadLetterFailure) -> str:
        return str(failure)

    @admin.display(description="stack trace")
    def stack(self, failure: DeadLetterFailure) -> SafeString:
        return format_html(
            "<details><summary>show</summary><pre>{}</pre></details>", failure.stack_trace
        )


@admin.register(DeadLetter)
class DeadLetterAdmin(DeadLetterActions):
    list_display = [
        "id",
        "state",
        "group",
        "event_type",
        "event_id",
        "attempts",
        "replays",
        "last_failed_at",
    ]
    list_filter = ["state", "event_type", "group"]
    list_select_related = ["group"]
    ordering = ["-last_failed_at"]
    search_fields = ["=event_id"]
    inlines = [FailureInline]
    fields = [
        "state",
        "group",
        "topic",
        "event_type",
        "event_id",
        "partition_key",
        "payload",
        "kafka_headers",
        "attempts",
        "replays",
        "last_replayed_at",
        "created_at",
        "last_failed_at",
        "resolved_at",
        "discard_reason",
    ]
    readonly_fields = ["partition_key", "payload", "kafka_headers"]

    def entries(self, queryset: QuerySet[DeadLetter]) -> QuerySet[DeadLetter]:
        return queryset

    def get_queryset(self, request: HttpRequest) -> QuerySet[DeadLetter]:
        queryset: QuerySet[DeadLetter] = super().get_queryset(request)
        # The list shows no payloads, which may be megabytes each.
        match = request.resolver_match
        is_list = match is not None and (match.url_name or "").endswith("changelist")
        return queryset.defer("value", "headers") if is_list else queryset

    @admin.display(description="key")
    def partition_key(self, entry: DeadLetter) -> str:
        return payloads.pretty(entry.key)

    @admin.display
    def payload(self, entry: DeadLetter) -> SafeString:
        return format_html("<pre>{}</pre>", payloads.pretty(entry.value))

    @admin.display(description="headers")
    def kafka_headers(self, entry: DeadLetter) -> SafeString:
        return format_html("<pre>{}</pre>", payloads.headers(entry.headers))


@admin.register(ProcessedEvent)
class ProcessedEventAdmin(LargeTableAdmin):
    list_display = ["event_id", "type", "processed_at"]
    search_help_text = "An event id."


def sparkline(failures: Iterable[datetime], now: datetime) -> SafeString:
    """Return a bar chart of failures an hour, oldest first."""
    hours = Tally(int((now - failed_at) / timedelta(hours=1)) for failed_at in failures)
    counts = [hours.get(hour, 0) for hour in range(HISTORY_HOURS - 1, -1, -1)]
    return charts.bars(
        counts, title=f"{sum(counts)} failures in 24 hours, at most {max(counts)} an hour"
    )
