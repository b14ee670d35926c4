"""Filters of the list of schedules; each is one condition that stays fast at a million rows."""

from datetime import timedelta
from typing import Any

from django.contrib import admin
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.http import HttpRequest
from django_celery_beat.models import PeriodicTask

from scheduling import clock
from scheduling.admin.common.filters import LONGEST_NUMBER, InputFilter
from scheduling.admin.schedules.form import RULES
from scheduling.models import ManagedBy, Plan, Policy

FEW = 1000
LATE = timedelta(minutes=1)
WINDOWS = {"late": -LATE, "hour": timedelta(hours=1), "day": timedelta(days=1)}


def _if_few(queryset: QuerySet[Any], condition: Any) -> QuerySet[Any]:
    """Return the schedules that meet a condition, by their ids if these are few.

    Postgres would otherwise read all schedules in the order of the list to find the few.
    """
    few = PeriodicTask.objects.filter(condition).order_by().values_list("pk", flat=True)
    found = list(few[: FEW + 1])
    return queryset.filter(pk__in=found) if len(found) <= FEW else queryset.filter(condition)


class StatusFilter(admin.SimpleListFilter):
    title = "status"
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        words = ("enabled", "paused", "disabled")
        return [*((word, word) for word in words), ("quarantine", "in quarantine")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        now = clock.now()
        if self.value() == "disabled":
            return queryset.filter(enabled=False)
        if self.value() == "quarantine":
            return queryset.filter(enabled=True, plan__error__gt="")
        # The condition of `schedules.paused`, through the join, which is faster at a million rows.
        over, lasts = Q(policy__paused_until__lte=now), Q(policy__paused_until__gt=now)
        if self.value() == "paused":
            lasts |= Q(policy__paused_until__isnull=True)
            return queryset.filter(lasts, enabled=True, policy__paused_at__isnull=False)
        if self.value() == "enabled":
            running = Q(policy__paused_at__isnull=True) | over
            return queryset.filter(running, enabled=True, plan__error="")
        return queryset


class NextRunFilter(admin.SimpleListFilter):
    """By the next run, soonest first."""

    title = "next run"
    parameter_name = "next"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [
            ("late", "overdue by a minute"),
            ("hour", "within an hour"),
            ("day", "within a day"),
            ("none", "none planned"),
        ]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() in WINDOWS:
            return queryset.filter(plan__next_due_at__lte=clock.now() + WINDOWS[self.value() or ""])
        if self.value() == "none":
            planned = Plan.objects.filter(pk=OuterRef("pk"), next_due_at__isnull=False)
            return _if_few(queryset, ~Exists(planned))
        return queryset


class OwnerFilter(InputFilter):
    title = "owner"
    parameter_name = "owner"
    placeholder = "a person or a team"

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(policy__owner=self.value()) if self.value() else queryset


class ManagedByFilter(admin.SimpleListFilter):
    title = "managed by"
    parameter_name = "managed_by"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(choice.value, str(choice.label)) for choice in ManagedBy]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() == ManagedBy.CODE:
            return queryset.filter(policy__managed_by=ManagedBy.CODE)
        if not self.value():
            return queryset
        of_code = Policy.objects.filter(pk=OuterRef("pk"), managed_by=ManagedBy.CODE)
        return _if_few(queryset, ~Exists(of_code))


class RuleFilter(admin.SimpleListFilter):
    """By one rule's row, as the rules' own pages link to it; shown only while it is in use."""

    title = "rule"
    parameter_name = "rule"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        kind, number = self._asked()
        return [(f"{kind}-{number}", f"this {kind} (number {number})")] if kind else []

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        kind, number = self._asked()
        return queryset.filter(**{f"{kind}_id": number}) if kind else queryset

    def _asked(self) -> tuple[str, int]:
        kind, _, number = (self.value() or "").partition("-")
        known = kind in RULES and number.isdecimal() and len(number) <= LONGEST_NUMBER
        return (kind, int(number)) if known else ("", 0)
