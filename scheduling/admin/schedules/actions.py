"""Actions of operators on schedules, from the list and from a schedule's page."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from django import forms
from django.contrib import admin, messages
from django.contrib.admin.helpers import ActionForm
from django.db.models import QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django_celery_beat.models import PeriodicTask

from scheduling import clock, recurrence
from scheduling import schedules as core
from scheduling.admin.common.display import moment
from scheduling.admin.common.object_actions import ObjectActions
from scheduling.admin.common.page import link
from scheduling.admin.common.paging import BOUND
from scheduling.admin.schedules.state import is_of_code
from scheduling.models import Schedule
from scheduling.runs.scheduled_calls import run_now
from scheduling.schedules.rules import rule_of
from scheduling.schedules.standing import is_paused, policy_of

NAMES_SHOWN = 5


class ScheduleActionForm(ActionForm):
    """The list's actions, with room for the reason of a pause."""

    reason = forms.CharField(required=False, max_length=500, label="Reason, for a pause:")


class PauseForm(forms.Form):
    reason = forms.CharField(required=False, max_length=500)
    until = forms.DateTimeField(required=False)


class ScheduleActions(ObjectActions):
    """Enable, disable, run now, pause and resume, for users who may change schedules."""

    action_form = ScheduleActionForm
    actions = ("enable", "disable", "run_now", "pause", "resume")
    buttons = ("run_now", "pause", "resume", "enable", "disable")

    def called(self, obj: Any) -> str:
        return str(obj.name)

    def offers(self, obj: Any, name: str) -> bool:
        paused, of_code = is_paused(policy_of(obj), clock.now()), is_of_code(obj)
        return {
            "enable": not obj.enabled and not of_code,
            "disable": obj.enabled and not of_code,
            "pause": not paused,
            "resume": paused,
        }.get(name, True)

    @admin.action(description="Enable", permissions=["change"])
    def enable(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        self._switch(request, queryset, enabled=True)

    @admin.action(description="Disable", permissions=["change"])
    def disable(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        self._switch(request, queryset, enabled=False)

    @admin.action(description="Run now", permissions=["change"])
    def run_now(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        by = request.user.get_username()
        started: list[tuple[str, SafeString]] = []

        def start(schedule: PeriodicTask) -> str:
            run = run_now(schedule, by=by)
            started.append((schedule.name, link("run", run.pk, f"run {run.pk}")))
            return f"Run now: {run.pk}"

        if self.for_each(request, queryset, start):
            links = format_html_join(", ", "{}: {}", started)
            text = format_html("Enqueued beside the plan: {}", links)
            self.message_user(request, text, messages.SUCCESS)

    @admin.action(description="Pause", permissions=["change"])
    def pause(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        options = PauseForm(request.POST)
        if not options.is_valid():
            for field, errors in options.errors.items():
                text = f"{field}: {' '.join(map(str, errors))}"
                self.message_user(request, text, messages.ERROR)
            return
        by, until = request.user.get_username(), options.cleaned_data["until"]
        reason = options.cleaned_data["reason"]

        def pause(schedule: PeriodicTask) -> str:
            began = core.pause(schedule, by=by, until=until, reason=reason)
            return " ".join(("Paused" if began else "Pause changed:", _until(until), reason))

        if done := self.for_each(request, queryset, pause):
            text = f"Paused {_count(done)} {_until(until)}."
            self.message_user(request, text, messages.SUCCESS)

    @admin.action(description="Resume", permissions=["change"])
    def resume(self, request: HttpRequest, queryset: QuerySet[Any]) -> None:
        by = request.user.get_username()

        def resume(schedule: PeriodicTask) -> str:
            return "Resumed" if core.resume(schedule, by=by) else ""

        if done := self.for_each(request, queryset, resume):
            text = f"Resumed {_count(done)}: planned again from now."
            self.message_user(request, text, messages.SUCCESS)
        else:
            self.message_user(
                request, "Nothing was resumed: none of the schedules is paused.", messages.WARNING
            )

    def _switch(self, request: HttpRequest, queryset: QuerySet[Any], *, enabled: bool) -> None:
        """Enable or disable the schedules of users, and name the unchanged ones."""
        rows = list(queryset[: BOUND + 1])
        if self.refuse_too_many(request, rows, BOUND):
            return
        of_code = [row for row in rows if is_of_code(row)]
        others = [row for row in rows if not is_of_code(row)]
        changed = [row for row in others if row.enabled != enabled]
        word = "enabled" if enabled else "disabled"
        if unchanged := len(others) - len(changed):
            self.message_user(request, f"Already {word}: {_count(unchanged)}.")
        if enabled:
            changed = self._that_fire(request, changed)
        if changed:
            # One statement, so that the triggers ask for all their plans at once.
            ids = [row.pk for row in changed]
            Schedule.objects.filter(pk__in=ids).update(enabled=enabled, date_changed=Now())
            self.log(request, changed, word.capitalize())
            text = f"{word.capitalize()} {_count(len(changed))}."
            self.message_user(request, text, messages.SUCCESS)
        if of_code:
            text = (
                f"Managed by code, so not changed: {_names(of_code)}."
                " Pause a schedule that must stop."
            )
            self.message_user(request, text, messages.WARNING)

    def _that_fire(self, request: HttpRequest, rows: Sequence[Any]) -> list[Any]:
        """Return the rows that would fire, and show why the others stay disabled."""
        now, why, fire = clock.now(), dict[str, str](), list[Any]()
        for row in rows:
            try:
                recurrence.check(rule_of(row), now)
                fire.append(row)
            except recurrence.RecurrenceError as error:
                why[row.name] = str(error)
        for name, problem in list(why.items())[:NAMES_SHOWN]:
            self.message_user(request, f"{name} stays disabled: {problem}", messages.ERROR)
        if len(why) > NAMES_SHOWN:
            text = f"{_count(len(why) - NAMES_SHOWN)} more stay disabled for such reasons."
            self.message_user(request, text, messages.ERROR)
        return fire


def _until(instant: datetime | None) -> str:
    return f"until {moment(instant)}" if instant else "until resumed"


def _count(number: int) -> str:
    return "1 schedule" if number == 1 else f"{number:,} schedules"


def _names(rows: Sequence[Any]) -> str:
    more = f" and {len(rows) - NAMES_SHOWN} more" if len(rows) > NAMES_SHOWN else ""
    return ", ".join(row.name for row in rows[:NAMES_SHOWN]) + more
