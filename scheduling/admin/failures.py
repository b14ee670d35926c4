"""The page of failure groups: task, place and count of each; resolve and reopen them."""

from datetime import timedelta
from typing import Any

from django.contrib import admin, messages
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from scheduling import clock
from scheduling.admin.common.display import (
    NOTHING,
    ago,
    badge,
    block,
    breakable,
    failed_attempts,
    moment,
)
from scheduling.admin.common.filters import TaskFilter
from scheduling.admin.common.object_actions import EngineRows
from scheduling.admin.common.page import instant_column, link, seen_at
from scheduling.failures.groups import reopen, resolve
from scheduling.models import FailureGroup, Run, Schedule

NAMES_SHOWN = 3


class StateFilter(admin.SimpleListFilter):
    """Shows open groups by default: resolved ones need no attention."""

    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("resolved", "resolved"), ("all", "all")]

    def choices(self, changelist: ChangeList) -> Any:
        first, *others = super().choices(changelist)
        yield {**first, "display": "open"}
        yield from others

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        if self.value() == "all":
            return queryset
        return queryset.filter(resolved_at__isnull=self.value() != "resolved")


class SeenFilter(admin.SimpleListFilter):
    title = "last seen"
    parameter_name = "seen"
    WINDOWS = (
        ("hour", "in the last hour", timedelta(hours=1)),
        ("day", "in the last day", timedelta(days=1)),
        ("week", "in the last 7 days", timedelta(days=7)),
    )

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(name, words) for name, words, _ in self.WINDOWS]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        back = {name: length for name, _, length in self.WINDOWS}.get(self.value() or "")
        return queryset.filter(last_seen_at__gt=clock.now() - back) if back else queryset


@admin.register(FailureGroup)
class FailureGroupAdmin(EngineRows):
    """Beat writes failure groups; users who may change them can resolve and reopen them."""

    change_form_template = "admin/scheduling/run/change_form.html"
    list_display = ("failure", "state", "count_", "last_seen", "first_seen", "hit", "last_run")
    list_filter = (StateFilter, SeenFilter, TaskFilter)
    ordering = ("-last_seen_at", "pk")
    search_fields = ("exception__contains", "place__contains")
    search_help_text = "A part of the exception's name or of the place. Upper and lower case count."
    actions = ("resolve", "reopen")
    buttons = ("resolve", "reopen")
    fieldsets = (
        (None, {"fields": (("task", "state"), ("exception", "place_"), "schedules_")}),
        (
            "How often",
            {"fields": (("count_", "first_at", "last_at"), ("told", "not_told", "resolved"))},
        ),
        ("The last one", {"fields": ("error", "run", "attempts")}),
    )

    # --- The list ---------------------------------------------------------------------------------

    @admin.display(description="failure")
    def failure(self, group: FailureGroup) -> SafeString:
        return format_html(
            '{}<br>{}<br><span class="quiet">{}</span>',
            group.exception,
            breakable(group.task),
            breakable(group.place),
        )

    @admin.display(description="state")
    def state(self, group: FailureGroup) -> SafeString:
        if group.resolved_at is not None:
            return badge("succeeded", "resolved")
        news = f", {group.get_news_display()}" if group.news else ""
        return badge("failed", f"open{news}")

    @admin.display(description="times")
    def count_(self, group: FailureGroup) -> str:
        return f"{group.count:,}"

    @admin.display(description="last seen")
    def last_seen(self, group: FailureGroup) -> SafeString | str:
        return ago(group.last_seen_at, seen_at(group))

    @admin.display(description="first seen")
    def first_seen(self, group: FailureGroup) -> SafeString | str:
        return ago(group.first_seen_at, seen_at(group))

    @admin.display(description="schedules")
    def hit(self, group: FailureGroup) -> str:
        names = group.schedules
        more = f" and {len(names) - NAMES_SHOWN} more" if names[NAMES_SHOWN:] else ""
        return f"{', '.join(names[:NAMES_SHOWN])}{more}" or NOTHING

    @admin.display(description="last run")
    def last_run(self, group: FailureGroup) -> SafeString:
        short = format_html("<code>…{}</code>", str(group.last_run_id)[-8:])
        return link("run", group.last_run_id, short)

    # --- The page of one --------------------------------------------------------------------------

    @admin.display(description="place")
    def place_(self, group: FailureGroup) -> str:
        return group.place or "unknown: the failure has no traceback"

    @admin.display(description="schedules")
    def schedules_(self, group: FailureGroup) -> SafeString | str:
        if not group.schedules:
            return "none: the runs were enqueued without one"
        found = Schedule.objects.filter(name__in=group.schedules).values_list("name", "pk")
        keys = dict(found)
        links = (link("schedule", keys[n], n) if n in keys else n for n in group.schedules)
        return format_html_join(", ", "{}", ((each,) for each in links))

    first_at = instant_column("first_seen_at", "first seen")
    last_at = instant_column("last_seen_at", "last seen")
    told = instant_column("told_at", "owners notified")

    @admin.display(description="run")
    def run(self, group: FailureGroup) -> SafeString:
        return link("run", group.last_run_id)

    @admin.display(description="since then")
    def not_told(self, group: FailureGroup) -> str:
        return f"{group.count - group.told_count:,} times"

    @admin.display(description="resolved")
    def resolved(self, group: FailureGroup) -> str:
        if group.resolved_at is None:
            return "no"
        return f"{moment(group.resolved_at)} by {group.resolved_by}"

    @admin.display(description="error")
    def error(self, group: FailureGroup) -> SafeString | str:
        return block(group.last_error)

    @admin.display(description="its attempts")
    def attempts(self, group: FailureGroup) -> SafeString | str:
        errors = Run.objects.filter(pk=group.last_run_id).values_list("errors", flat=True).first()
        return failed_attempts(errors) if errors else "none: the run was deleted"

    # --- Actions ----------------------------------------------------------------------------------

    def offers(self, obj: Any, name: str) -> bool:
        return (obj.resolved_at is None) == (name == "resolve")

    @admin.action(description="Resolve", permissions=["operate"])
    def resolve(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        by = request.user.get_username()
        done = self.for_each(
            request, queryset, lambda group: "Resolved" if resolve([group.pk], by=by) else ""
        )
        self._say(request, done, "Resolved", "the owners are notified of the next failure at once")

    @admin.action(description="Reopen", permissions=["operate"])
    def reopen(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        by = request.user.get_username()
        done = self.for_each(
            request, queryset, lambda group: "Reopened" if reopen([group.pk], by=by) else ""
        )
        self._say(request, done, "Reopened", "")

    def _say(self, request: HttpRequest, done: int, did: str, then: str) -> None:
        if not done:
            self.message_user(
                request,
                "Nothing was changed: every selected group is already in that state.",
                messages.WARNING,
            )
            return
        count = "1 failure" if done == 1 else f"{done:,} failures"
        more = f": {then}" if then else ""
        self.message_user(request, f"{did} {count}{more}.", messages.SUCCESS)
