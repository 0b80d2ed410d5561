"""Dead letters for operators: what failed, how often and why; replay it or discard it."""

from collections.abc import Sequence
from typing import Any, cast

from django.contrib import admin, messages
from django.contrib.admin.helpers import ACTION_CHECKBOX_NAME
from django.contrib.admin.models import CHANGE, LogEntry
from django.contrib.admin.views.main import ChangeList
from django.contrib.contenttypes.models import ContentType
from django.core import signing
from django.core.exceptions import SuspiciousOperation
from django.core.paginator import Paginator
from django.db.models import Model, Q, QuerySet
from django.db.models.expressions import Combinable
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString

from eventbus import bulk, cell_pages, cells
from eventbus.bulk import Job
from eventbus.database.sql import fetch
from eventbus.deadletters import payloads
from eventbus.deadletters import replay as replays
from eventbus.exceptions import PublishFailed
from eventbus.filters import (
    ChosenFilter,
    ErrorFilter,
    GroupErrorFilter,
    GroupFilter,
    StateFilter,
    TypeFilter,
)
from eventbus.ids.snowflake import number_in
from eventbus.models import (
    DeadLetter,
    DeadLetterFailure,
    DeadLetterGroup,
    DeadLetterQuerySet,
    ProcessedEvent,
)
from eventbus.watch import charts, pipeline

HISTORY_HOURS = 24
HISTORY_FAILURES = 50_000
LISTED = ("id", "state", "group", "event_id", "attempts", "last_failed_at")
# What an action was asked with, beside its selection.
KEPT = ("reason", "parked", "overdue", "from_entry")

# Of the newest failures only, so that a flood makes no page slow.
_FAILURES_BY_HOUR = """
SELECT group_id, floor(extract(epoch FROM now() - last_failed_at) / 3600)::int AS ago, count(*)
FROM (
    SELECT group_id, last_failed_at FROM dead_letters
    WHERE last_failed_at > now() - make_interval(hours => %s) AND last_failed_at <= now()
    ORDER BY last_failed_at DESC LIMIT %s
) AS newest
WHERE group_id = ANY(%s::bigint[])
GROUP BY 1, 2
"""


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
    """The rows of the highest keys below `?<key>__lt=`, in key order: one index scan, nothing
    counted or skipped.

    A table of 10^7 rows is shown as fast as an empty one; an ordering, a count or an offset would
    read all of it.
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
    """A table too large to count, sort or scan: rows are found by id, and browsed from the highest
    id down.
    """

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
    """The two actions, each with its own permission, a page to confirm it on, and parts that a
    request can do.
    """

    actions = ["replay_selected", "discard_selected"]
    change_list_template = "admin/dead_letters.html"
    show_facets = admin.ShowFacets.NEVER

    class Media:
        css = {"all": ["eventbus/pages.css"]}

    def entries(self, queryset: QuerySet[Any]) -> DeadLetterQuerySet:
        """Return the dead letters that the selected rows stand for."""
        raise NotImplementedError

    def lookup_allowed(self, lookup: str, value: str, request: HttpRequest) -> bool:
        # Any other would be a way to ask for any query, or for one that PostgreSQL refuses.
        filters = cast(Sequence[type[ChosenFilter]], self.list_filter)
        return lookup in {chosen.parameter_name for chosen in filters}

    def has_replay_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("eventbus.replay_deadletter")

    def has_discard_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("eventbus.discard_deadletter")

    @admin.action(description="Replay", permissions=["replay"])
    def replay_selected(self, request: HttpRequest, queryset: QuerySet[Any]) -> HttpResponse | None:
        entries = self.entries(queryset).replayable(parked=True, overdue=True)
        if "confirmed" not in request.POST:
            return self._confirm(request, entries, "Replay")
        job = self._job(request, queryset, entries, "Replay")
        stopped_by = self._replay(request, job, entries)
        self._write_log(job, f"Replayed {job.done} dead letters.")
        if stopped_by is None and not job.finished:
            return self._progress(request, job, "Replay")
        told = (
            f"{job.done} replayed, {job.skipped} skipped, {job.failed} not acknowledged by Kafka."
        )
        if stopped_by is not None:
            told = f"{told} {stopped_by} The rest is still open."
        level = messages.WARNING if job.failed or job.skipped or stopped_by else messages.SUCCESS
        self.message_user(request, told, level)
        return self._back(request)

    def _replay(
        self, request: HttpRequest, job: Job, entries: DeadLetterQuerySet
    ) -> PublishFailed | None:
        """Replay a part of the entries.

        Return why it ends before the last of them: Kafka takes no more.
        """
        which = {name: name in request.POST for name in ("parked", "overdue")}
        for ids in job.batches(entries, replays.BATCH):
            try:
                [totals] = replays.replay(ids, **which)
            except PublishFailed as error:
                return error
            job.done += totals.acknowledged
            job.skipped += totals.skipped
            job.failed += totals.failed
            if totals.failed == len(ids):
                return PublishFailed("Kafka took none of the last ones.")
        return None

    @admin.action(description="Discard with a reason", permissions=["discard"])
    def discard_selected(
        self, request: HttpRequest, queryset: QuerySet[Any]
    ) -> HttpResponse | None:
        entries = self.entries(queryset).unresolved()
        reason = request.POST.get("reason", "").strip()
        if "confirmed" not in request.POST or not reason:
            return self._confirm(request, entries, "Discard")
        job = self._job(request, queryset, entries, "Discard")
        for ids in job.batches(entries, replays.DISCARDED_AT_ONCE):
            job.done += replays.discard(ids, reason=reason)
        self._write_log(job, f"Discarded {job.done} dead letters: {reason}")
        if not job.finished:
            return self._progress(request, job, "Discard")
        self.message_user(request, f"{job.done} discarded.", messages.SUCCESS)
        return self._back(request)

    def _confirm(
        self, request: HttpRequest, entries: DeadLetterQuerySet, verb: str
    ) -> TemplateResponse:
        found = bulk.survey(entries)
        context = {
            **self._carried(request, Job.of(found), verb),
            "title": f"{verb} dead letters",
            **found,
            "reason_missing": "confirmed" in request.POST,
            "examples": entries.only(*LISTED).prefetch_related("group").order_by("id")[:5],
        }
        return TemplateResponse(request, "admin/eventbus/confirm.html", context)

    def _progress(self, request: HttpRequest, job: Job, verb: str) -> TemplateResponse:
        """Say how far it has come, on a page that asks for the next part."""
        context = {
            **self._carried(request, job, verb),
            "title": f"{verb}ing dead letters",
            "job": job,
            "kept": [(name, request.POST[name]) for name in KEPT if name in request.POST],
        }
        return TemplateResponse(request, "admin/eventbus/progress.html", context)

    def _carried(self, request: HttpRequest, job: Job, verb: str) -> dict[str, Any]:
        """Return what a page needs to come back with: the very selection, and what there was of
        it.
        """
        return {
            **self.admin_site.each_context(request),
            "opts": self.model._meta,
            "verb": verb,
            "action": f"{verb.lower()}_selected",
            "selected": request.POST.getlist(ACTION_CHECKBOX_NAME)[: self.list_per_page],
            "select_across": request.POST.get("select_across", "0"),
            "job_token": job.dump(_owner(request, verb)),
        }

    def _job(
        self,
        request: HttpRequest,
        queryset: QuerySet[Any],
        entries: DeadLetterQuerySet,
        verb: str,
    ) -> Job:
        """Return the job that the page carries, or a new one, with its lines in the log of
        actions.
        """
        token = request.POST.get("job")
        try:
            job = Job.load(token, _owner(request, verb)) if token else Job.of(bulk.survey(entries))
        except signing.BadSignature as error:
            raise SuspiciousOperation("This page is not of this action.") from error
        if not job.log_entries:
            job.log_entries = self._begin_log(request, queryset)
        return job

    def _begin_log(self, request: HttpRequest, queryset: QuerySet[Any]) -> list[int]:
        """Write a line for each row that was picked; one alone for all that a filter finds."""
        rows: list[tuple[str | None, str]]
        if _is_across(request):
            rows = [(None, f"all of {request.get_full_path()}")]
        else:
            rows = [(cell_pages.logged(row.pk), _name_in_log(row)) for row in queryset]
        kind = ContentType.objects.get_for_model(self.model, for_concrete_model=False)
        lines = LogEntry.objects.bulk_create(
            LogEntry(
                user_id=cast(int, request.user.pk),
                content_type=kind,
                object_id=row_id,
                object_repr=name[:200],
                action_flag=CHANGE,
            )
            for row_id, name in rows
        )
        return [line.pk for line in lines]

    def change_view(
        self, request: HttpRequest, object_id: str, *args: Any, **kwargs: Any
    ) -> HttpResponse:
        # The log of actions leads here, for all cells.
        way = cell_pages.from_log(f"{self.opts.app_label}_{self.opts.model_name}", object_id)
        return way or super().change_view(request, object_id, *args, **kwargs)

    def history_view(
        self, request: HttpRequest, object_id: str, *args: Any, **kwargs: Any
    ) -> HttpResponse:
        # Numbers are a cell's own, and so is what was done to a row.
        return super().history_view(request, cell_pages.logged(object_id), *args, **kwargs)

    def get_object(
        self, request: HttpRequest, object_id: str, from_field: str | None = None
    ) -> Any:
        number = object_id.partition(cell_pages.OF_CELL)[0]
        return super().get_object(request, number, from_field)

    def _write_log(self, job: Job, what: str) -> None:
        LogEntry.objects.filter(pk__in=job.log_entries).update(change_message=what)

    def _back(self, request: HttpRequest) -> HttpResponse | None:
        """Return the way back to the entry from whose page it came; None is the way to the list."""
        selected = request.POST.getlist(ACTION_CHECKBOX_NAME)
        if "from_entry" not in request.POST or len(selected) != 1:
            return None
        return HttpResponseRedirect(reverse("admin:eventbus_deadletter_change", args=selected))


def _owner(request: HttpRequest, verb: str) -> str:
    """Return whose job and what kind of job a page may carry."""
    return f"{request.user.pk}:{verb}"


def _name_in_log(row: Model) -> str:
    cell = cells.here()
    return f"{row} in cell {cell.name}" if cell.name else str(row)


def _is_across(request: HttpRequest) -> bool:
    return request.POST.get("select_across", "0") != "0"


@admin.register(DeadLetterGroup)
class DeadLetterGroupAdmin(DeadLetterActions):
    list_display = [
        "cause",
        "short_message",
        "unresolved",
        "failures",
        "last_day",
        "last_seen",
        "dead_letters",
    ]
    list_filter = [TypeFilter, GroupErrorFilter]
    ordering = ["-last_seen"]
    search_fields = ["exception", "message"]

    def entries(self, queryset: QuerySet[DeadLetterGroup]) -> DeadLetterQuerySet:
        return DeadLetter.objects.filter(group__in=queryset.order_by().values("pk"))

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return GroupList

    @admin.display(description="cause", ordering="exception")
    def cause(self, group: DeadLetterGroup) -> str:
        return group.cause

    @admin.display(description="message", ordering="message")
    def short_message(self, group: DeadLetterGroup) -> SafeString:
        return format_html('<span class="clamped">{}</span>', group.message)

    @admin.display
    def unresolved(self, group: Any) -> str:
        return pipeline.at_most(group.unresolved)

    @admin.display(description="last 24 hours")
    def last_day(self, group: Any) -> SafeString:
        return sparkline(group.hours)

    @admin.display(description="entries")
    def dead_letters(self, group: DeadLetterGroup) -> SafeString:
        return format_html('<a href="../deadletter/?group={}">show</a>', group.pk)


class GroupList(ChangeList):
    """Groups with what is counted of their entries, for those on the page alone."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        self.result_list = list(self.result_list)
        ids = [group.pk for group in self.result_list]
        unresolved, hours = pipeline.unresolved(ids), failures_by_hour(ids)
        for group in self.result_list:
            group.unresolved = unresolved[group.pk]
            group.hours = hours[group.pk]


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
        "cause",
        "message",
        "event_id",
        "attempts",
        "last_failed_at",
    ]
    list_filter = [StateFilter, TypeFilter, ErrorFilter, GroupFilter]
    ordering = ["-last_failed_at"]
    search_fields = ["pk"]
    search_help_text = "The id of an event or of a dead letter."
    change_form_template = "admin/eventbus/entry.html"
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

    def entries(self, queryset: QuerySet[DeadLetter]) -> DeadLetterQuerySet:
        return cast(DeadLetterQuerySet, queryset)

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        # Django's own search compares numbers as text, which no index serves.
        term = search_term.strip()
        number = id_of(term)
        if number is not None:
            queryset = queryset.filter(Q(event_id=number) | Q(pk=number))
        elif term:
            queryset = queryset.none()
        return queryset, False

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        context |= {
            "may_replay": self.has_replay_permission(request),
            "may_discard": self.has_discard_permission(request),
        }
        return super().render_change_form(request, context, *args, **kwargs)

    def get_queryset(self, request: HttpRequest) -> QuerySet[DeadLetter]:
        queryset: QuerySet[DeadLetter] = super().get_queryset(request)
        match = request.resolver_match
        if match is None or not (match.url_name or "").endswith("changelist"):
            return queryset
        # Not what the list does not show: payloads may be megabytes each. Groups are few, and a
        # join would have PostgreSQL sort all entries with the texts of theirs.
        return queryset.only(*LISTED).prefetch_related("group")

    @admin.display(description="cause", ordering="group__exception")
    def cause(self, entry: DeadLetter) -> str:
        return entry.group.cause

    @admin.display(description="message")
    def message(self, entry: DeadLetter) -> SafeString:
        link = '<a class="clamped" href="../deadlettergroup/{}/change/">{}</a>'
        return format_html(link, entry.group_id, entry.group.message)

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


def failures_by_hour(groups: Sequence[int]) -> dict[int, list[int]]:
    """Return of each group how many of its entries failed last in each of the last hours, the
    oldest first.

    Of all groups together only the newest `HISTORY_FAILURES` are counted.
    """
    hours = {group: [0] * HISTORY_HOURS for group in groups}
    values = [HISTORY_HOURS, HISTORY_FAILURES, list(groups)]
    for group, ago, count in fetch(_FAILURES_BY_HOUR, values):
        hours[group][-1 - ago] = count
    return hours


def sparkline(counts: Sequence[int]) -> SafeString:
    """Return a bar chart of failures an hour, oldest first."""
    return charts.bars(
        counts, title=f"{sum(counts)} failures in 24 hours, at most {max(counts)} an hour", step=4
    )
