"""The page of schedules, which replaces django-celery-beat's page of periodic tasks."""

from datetime import datetime
from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string
from django.urls import reverse
from django.utils import timezone
from django.utils.html import format_html
from django.utils.http import urlencode
from django.utils.safestring import SafeString
from django_celery_beat.models import PeriodicTask

from scheduling import clock, recurrence
from scheduling import schedules as core
from scheduling.admin.common.display import MOMENTS, NOTHING, ago, badge, breakable, moment, when
from scheduling.admin.common.filters import TaskFilter
from scheduling.admin.common.page import RowsSeen, link
from scheduling.admin.schedules import filters
from scheduling.admin.schedules.actions import ScheduleActions
from scheduling.admin.schedules.form import RULES, ScheduleForm
from scheduling.admin.schedules.policy import PolicyInline
from scheduling.admin.schedules.previews import preview_of
from scheduling.admin.schedules.state import is_of_code, newest_runs, status_of
from scheduling.errors import SchedulingError
from scheduling.models import Policy, Run, Schedule
from scheduling.schedules.destinations import where_it_goes
from scheduling.schedules.rule_rows import hold
from scheduling.schedules.rules import rule_of
from scheduling.schedules.standing import plan_of, policy_of

OCCURRENCES_SHOWN = 5
DST = {
    "": "",
    "shifted": "the clocks skip {missing}: it runs right after the gap",
    "repeated": "the clocks show this time twice: this is the second time",
    "skipped": "the clocks skip {missing}: no run for it",
}


class ScheduleList(RowsSeen):
    """Adds the newest run of each row, in one query."""

    def get_results(self, request: HttpRequest) -> None:
        super().get_results(request)
        newest = newest_runs(self.result_list)
        for row in self.result_list:
            row.newest_run = newest.get(row.pk)


@admin.register(Schedule)
class ScheduleAdmin(ScheduleActions):
    form = ScheduleForm
    formfield_overrides = MOMENTS
    inlines = (PolicyInline,)
    change_form_template = "admin/scheduling/schedule/change_form.html"
    list_display = (
        "name", "task_", "rule", "status", "next_run", "last_run", "owner",
    )  # fmt: skip
    list_filter = (
        filters.StatusFilter,
        filters.NextRunFilter,
        TaskFilter,
        filters.OwnerFilter,
        filters.ManagedByFilter,
        filters.RuleFilter,
    )
    sortable_by = ("name",)
    # Ignoring case would take three times as long at a million rows.
    search_fields = ("name__contains", "task__contains")
    search_help_text = "A part of the name or of the task. Upper and lower case count."
    autocomplete_fields = RULES
    readonly_fields = ("next_times", "history", "goes_to")
    fieldsets = (
        (None, {"fields": ("name", "task", "enabled", "description", "next_times", "history")}),
        (
            "When it runs",
            {
                "fields": (*RULES, "start_time", "expires", "one_off"),
                "description": "Choose exactly one of the four rules.",
            },
        ),
        ("Arguments", {"fields": ("args", "kwargs")}),
        (
            "How it is sent",
            {
                "fields": (
                    "goes_to",
                    "queue",
                    "exchange",
                    "routing_key",
                    "priority",
                    "expire_seconds",
                    "headers",
                ),
                "classes": ("collapse",),
            },
        ),
    )

    # --- Permissions -----------------------------------------------------------------------------

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return _may(request, "view") or _may(request, "change")

    def has_add_permission(self, request: HttpRequest) -> bool:
        return _may(request, "add")

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return _may(request, "change") and not is_of_code(obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return _may(request, "delete") and not is_of_code(obj)

    def has_module_permission(self, request: HttpRequest) -> bool:
        return any(_may(request, action) for action in ("view", "add", "change", "delete"))

    # --- The list ---------------------------------------------------------------------------------

    def get_changelist(self, request: HttpRequest, **kwargs: Any) -> type[ChangeList]:
        return ScheduleList

    def get_ordering(self, request: HttpRequest) -> tuple[str, ...]:
        """Order by name; filtered by next run, the soonest first; paused ones, the latest first."""
        if request.GET.get("next") in filters.WINDOWS:
            return ("plan__next_due_at", "pk")
        if request.GET.get("status") == "paused":
            return ("-policy__paused_at", "pk")
        return ("name",)

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        return super().get_queryset(request).select_related(*RULES, "plan", "policy__calendar")

    @admin.display(description="task")
    def task_(self, schedule: PeriodicTask) -> SafeString:
        return breakable(schedule.task)

    @admin.display(description="rule")
    def rule(self, schedule: PeriodicTask) -> str:
        try:
            return recurrence.describe(rule_of(schedule))
        except recurrence.RecurrenceError:
            return str(schedule.scheduler or "no rule")

    @admin.display(description="status")
    def status(self, schedule: PeriodicTask) -> SafeString:
        kind, words = status_of(schedule, schedule.seen_at)
        word, _, rest = words.partition(" until ")
        until = format_html('<br><span class="quiet">until {}</span>', rest) if rest else ""
        return format_html("{}{}", badge(kind, word), until)

    @admin.display(description="next run")
    def next_run(self, schedule: PeriodicTask) -> SafeString | str:
        return when(plan_of(schedule).next_due_at, schedule.seen_at)

    @admin.display(description="last run")
    def last_run(self, schedule: PeriodicTask) -> SafeString | str:
        run = schedule.newest_run
        if run is None:
            return "never ran"
        return format_html("{}<br>{}", _outcome(run), ago(_moment_of(run), schedule.seen_at))

    @admin.display(description="owner")
    def owner(self, schedule: PeriodicTask) -> str:
        words = (policy_of(schedule).owner, "(code)" if is_of_code(schedule) else "")
        return " ".join(filter(None, words)) or NOTHING

    # --- The form ---------------------------------------------------------------------------------

    def formfield_for_dbfield(self, db_field: Any, request: Any, **kwargs: Any) -> Any:
        field: Any = super().formfield_for_dbfield(db_field, request, **kwargs)
        if db_field.name in RULES:
            # Other schedules may share the rule, so users change it on its own page.
            field.widget.can_change_related = False
        return field

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        schedule = kwargs.get("obj")
        if schedule is not None:
            runs = reverse("admin:scheduling_run_changelist")
            context |= {
                "status": badge(*status_of(schedule, clock.now())),
                "problem": plan_of(schedule).error,
                "of_code": is_of_code(schedule),
                "zone": timezone.get_current_timezone_name(),
                "runs_url": f"{runs}?{urlencode({'schedule': schedule.name})}",
                "preview": self._preview(context),
            }
        return super().render_change_form(request, context, *args, **kwargs)

    def _preview(self, context: dict[str, Any]) -> dict[str, Any] | None:
        """Return the effect of the form's change, if this is a preview of a valid form."""
        form = context["adminform"].form
        inlines = [inline.formset for inline in context["inline_admin_formsets"]]
        asked = isinstance(form, ScheduleForm) and form.is_bound and form.is_preview
        if not asked or not form.fits or not all(formset.is_valid() for formset in inlines):
            return None
        for formset in inlines:
            form.instance.policy = formset.forms[0].instance  # unsaved, as the form itself
        return preview_of(form.instance, clock.now())

    @admin.display(description="next runs")
    def next_times(self, schedule: PeriodicTask) -> SafeString | str:
        if schedule.pk is None:
            return "Shown once it is saved."
        try:
            found = core.next_occurrences(schedule, 1 if schedule.one_off else OCCURRENCES_SHOWN)
        except SchedulingError as error:
            return str(error)
        if not found:
            return "The rule has no further occurrence."
        kind, words = status_of(schedule, clock.now())
        times = [_shown(occurrence) for occurrence in found]
        context = {
            "times": times,
            "elsewhere": any(time["here"] for time in times),
            "marks": any(time["mark"] for time in times),
            "calendar": any(time["calendar"] for time in times),
            "spread": any(occurrence.run_at != occurrence.due_at for occurrence in found),
            "unless": "" if kind == "succeeded" else words,
        }
        return render_to_string("admin/scheduling/schedule/next_times.html", context)

    @admin.display(description="last run")
    def history(self, schedule: PeriodicTask) -> SafeString | str:
        run = newest_runs([schedule]).get(schedule.pk) if schedule.pk else None
        if run is None:
            return "never ran"
        return format_html("{} {}", _outcome(run), moment(_moment_of(run)))

    @admin.display(description="runs go to")
    def goes_to(self, schedule: PeriodicTask) -> str:
        if schedule.pk is None:
            return "Shown once it is saved."
        return where_it_goes(schedule)

    def save_model(self, request: HttpRequest, obj: Any, form: Any, change: bool) -> None:
        """Write only the changed fields: beat may have written the row in the meantime."""
        if not change:
            obj.save(force_insert=True)
        elif form.changed_data:
            # In the order of the command `schedule edit` and of a pause: schedule, policy, plan.
            list(Schedule.objects.select_for_update(no_key=True).filter(pk=obj.pk).values("pk"))
            hold(obj, policy_of(obj).calendar_id)
            list(Policy.objects.select_for_update(no_key=True).filter(pk=obj.pk).values("pk"))
            obj.save(update_fields={*form.changed_data, "one_off", "date_changed"})

    def save_formset(self, request: HttpRequest, form: Any, formset: Any, change: bool) -> None:
        """Write only the changed fields: another user may have paused the schedule meanwhile."""
        formset.save(commit=False)
        for policy, changed in formset.changed_objects:
            policy.save(update_fields=changed)
        for policy in formset.new_objects:
            policy.save(force_insert=True)

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        core.remove(obj, by=request.user.get_username())

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        for schedule in queryset:
            core.remove(schedule, by=request.user.get_username())


def _may(request: HttpRequest, action: str) -> bool:
    """Return whether the user has the permission for schedules or for periodic tasks."""
    own, stock_ = f"scheduling.{action}_schedule", f"django_celery_beat.{action}_periodictask"
    return request.user.has_perm(own) or request.user.has_perm(stock_)


def _moment_of(run: Run) -> datetime:
    return run.started_at or run.due_at


def _outcome(run: Run) -> SafeString:
    return link("run", run.pk, badge(run.state, run.get_state_display()))


def _shown(occurrence: core.NextOccurrence) -> dict[str, str]:
    """Return a line of the next times: in the rule's zone, in ours, and the clock change."""
    here, there = moment(occurrence.due_at), occurrence.local.strftime("%a %Y-%m-%d %H:%M:%S %Z")
    return {
        "local": there,
        "here": here if here not in there else "",
        "run_at": moment(occurrence.run_at),
        "mark": DST[occurrence.dst].format(missing=occurrence.missing_words),
        "calendar": _calendar_words(occurrence),
    }


def _calendar_words(occurrence: core.NextOccurrence) -> str:
    if occurrence.moved_from:
        return f"moved from {occurrence.moved_from:%a %Y-%m-%d}"
    return f"skipped: {occurrence.day_off}" if occurrence.day_off else ""
