"""Filters of the list of runs."""

from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.db.models import Q, QuerySet
from django.http import HttpRequest
from django.utils import timezone

from scheduling import clock
from scheduling.admin.common.filters import InputFilter, TaskFilter
from scheduling.history.selecting import (
    Selection,
    in_state,
    of_origin,
    of_schedule,
    of_task,
    to_come,
)
from scheduling.models import Origin, State


class StateFilter(admin.ChoicesFieldListFilter):
    """By state, with a condition that lets Postgres use the index."""

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any] | None:
        chosen = _only(self)
        also = in_state(State(chosen)) if chosen in State.values else Q()
        return super().queryset(request, queryset.filter(also))


class OriginFilter(admin.ChoicesFieldListFilter):
    """By origin, with a condition that lets Postgres use the index."""

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any] | None:
        chosen = _only(self)
        also = of_origin(Origin(chosen)) if chosen in Origin.values else Q()
        return super().queryset(request, queryset.filter(also))


def _only(asked: admin.ChoicesFieldListFilter) -> str | None:
    """Return the chosen value if there is exactly one."""
    values: Any = asked.used_parameters.get(asked.lookup_kwarg) or []
    return values[0] if len(values) == 1 else None


class ScheduleFilter(InputFilter):
    """By a schedule's name: its runs under all its names, or the runs of a deleted schedule."""

    title = "schedule"
    parameter_name = "schedule"
    placeholder = "the whole name"

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        name = (self.value() or "").strip()
        return queryset.filter(of_schedule(name)) if name else queryset


class RunTaskFilter(TaskFilter):
    """By task; the list, which is ordered by id, begins at the newest run of the task."""

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        task = self.value()
        if not task:
            return queryset
        newest = list(Selection(task=task).newest(1))
        return queryset.filter(of_task(task), pk__lte=newest[0].pk) if newest else queryset.none()


class DueFilter(admin.SimpleListFilter):
    title = "due"
    parameter_name = "due"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [
            ("hour", "in the last hour"),
            ("today", "today"),
            ("week", "in the last 7 days"),
            ("month", "in the last 30 days"),
            ("later", "still to come"),
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        now = clock.now()
        if self.value() == "later":
            return queryset.filter(to_come(now))
        if self.value() == "today":
            midnight = timezone.localtime(now).replace(hour=0, minute=0, second=0, microsecond=0)
            # Until the next midnight: two days of the year do not have 24 hours.
            return queryset.filter(due_at__gte=midnight, due_at__lt=midnight + timedelta(days=1))
        back = {"hour": timedelta(hours=1), "week": timedelta(7), "month": timedelta(30)}
        if self.value() in back:
            return queryset.filter(due_at__gt=now - back[self.value() or ""], due_at__lte=now)
        return queryset
