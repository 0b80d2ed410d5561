"""The filters beside the list of dead letters. Each offers what the groups know, which are few."""

from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest

from eventbus.models import DeadLetter, DeadLetterGroup

WAITING = "waiting"
UNDECODABLE = "undecodable"


class ChosenFilter(admin.SimpleListFilter):
    """A filter that takes the values it offers; anything else finds nothing."""

    def has_output(self) -> bool:
        # A filter without output takes its parameter from the query string and does not apply it.
        return bool(self.lookup_choices) or self.parameter_name in self.used_parameters

    def value(self) -> str | None:
        chosen = super().value()
        if chosen is None or chosen in {value for value, _title in self.lookup_choices}:
            return chosen
        return ""

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        chosen = self.value()
        if chosen is None:
            return queryset
        return self.chosen(queryset, chosen) if chosen else queryset.none()

    def chosen(self, queryset: QuerySet[Any], value: str) -> QuerySet[Any]:
        raise NotImplementedError


class StateFilter(ChosenFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(WAITING, "waiting for someone"), *DeadLetter.State.choices]

    def chosen(self, queryset: QuerySet[Any], value: str) -> QuerySet[Any]:
        states = DeadLetter.UNRESOLVED if value == WAITING else (value,)
        return queryset.filter(state__in=states)


class TypeFilter(ChosenFilter):
    title = "event type"
    parameter_name = "type"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        types = DeadLetterGroup.objects.order_by("event_type").values_list("event_type", flat=True)
        return [(name or UNDECODABLE, name or UNDECODABLE) for name in types.distinct()]

    def chosen(self, queryset: QuerySet[Any], value: str) -> QuerySet[Any]:
        return queryset.filter(event_type="" if value == UNDECODABLE else value)


class ErrorFilter(ChosenFilter):
    title = "error"
    parameter_name = "error"
    field = "group__exception"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        names = DeadLetterGroup.objects.order_by("exception").values_list("exception", flat=True)
        return [(name, name.rpartition(".")[2]) for name in names.distinct()]

    def chosen(self, queryset: QuerySet[Any], value: str) -> QuerySet[Any]:
        return queryset.filter(**{self.field: value})


class GroupErrorFilter(ErrorFilter):
    field = "exception"


class GroupFilter(ChosenFilter):
    """One group, as the links to its entries say; offered by itself alone, for there may be
    thousands.
    """

    title = "group"
    parameter_name = "group"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        chosen = request.GET.get(self.parameter_name, "")
        if not chosen.isascii() or not chosen.isdecimal() or len(chosen) > 18:
            return []
        group = DeadLetterGroup.objects.filter(pk=int(chosen)).first()
        return [] if group is None else [(chosen, str(group))]

    def chosen(self, queryset: QuerySet[Any], value: str) -> QuerySet[Any]:
        return queryset.filter(group=int(value))
