"""The policy of a schedule, as a part of the schedule's form."""

from datetime import datetime
from typing import Any

from django.contrib import admin
from django.forms import BaseInlineFormSet
from django.http import HttpRequest
from django_celery_beat.models import PeriodicTask

from scheduling import clock, recurrence
from scheduling.admin.common.display import moment
from scheduling.models import Policy, Schedule
from scheduling.schedules.rules import rule_of

DURATION = "hours:minutes:seconds, such as 00:15:00; days go before it, as in “2 00:00:00”"


class PolicyFormSet(BaseInlineFormSet[Policy, PeriodicTask, Any]):
    """Refuses a calendar whose days off include every occurrence of the schedule."""

    def clean(self) -> None:
        super().clean()
        schedule: Any = self.instance
        if not schedule.enabled or schedule.scheduler is None or any(self.errors):
            return
        now = clock.now()
        for form in self.forms:
            if form.instance.calendar is None:
                continue
            schedule.policy = form.instance
            try:
                recurrence.check(rule_of(schedule, anchor=now), now)
            except recurrence.RecurrenceError as error:
                form.add_error("calendar", str(error))


class PolicyInline(admin.StackedInline[Policy, Schedule]):
    """How the schedule is treated. Users who may change the schedule may change this."""

    model = Policy
    formset = PolicyFormSet
    verbose_name = verbose_name_plural = "policy"
    extra = max_num = 1
    can_delete = False
    readonly_fields = ("pause", "managed_by")
    fields = (
        "pause",
        "overlap",
        "catch_up",
        "catch_up_window",
        "spread",
        "max_attempts",
        "deadline_after",
        "calendar",
        "excluded_day",
        "pause_after_failures",
        "owner",
        "managed_by",
    )

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name in HELP:
            kwargs["help_text"] = HELP[db_field.name]
        field: Any = super().formfield_for_dbfield(db_field, request, **kwargs)
        if db_field.name == "calendar":
            field.widget.can_delete_related = False  # other schedules may follow it too
        return field

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._of_the_schedule("view", request, obj)

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._of_the_schedule("change" if obj else "add", request, obj)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._of_the_schedule("change" if obj else "add", request, obj)

    def _of_the_schedule(self, action: str, request: HttpRequest, obj: Any) -> bool:
        page = self.admin_site.get_model_admin(Schedule)
        args = (request,) if action == "add" else (request, obj)
        return bool(getattr(page, f"has_{action}_permission")(*args))

    @admin.display(description="paused")
    def pause(self, policy: Policy) -> str:
        if policy.paused_at is None:
            return "no"
        words = [f"since {moment(policy.paused_at)}", _until(policy.paused_until)]
        if policy.paused_by:
            words.append(f"by {policy.paused_by}")
        if policy.pause_reason:
            words.append(f": {policy.pause_reason}")
        return " ".join(words).replace(" :", ":")


def _until(instant: datetime | None) -> str:
    return f"until {moment(instant)}" if instant else "until it is resumed"


HELP = {
    "overlap": "When an occurrence is due while an earlier run has not finished.",
    "catch_up": "How occurrences that passed during an outage are made up for.",
    "catch_up_window": "“A run for each”: how far back. “Skip”: the grace time "
    f"(1 minute if empty). {DURATION}.",
    "spread": f"Start up to this much later, always by the same offset. {DURATION}.",
    "max_attempts": "Failed attempts after which a run has failed. Empty: the job's own number.",
    "deadline_after": f"A run should have started this long after it was due. {DURATION}.",
    "calendar": "It does not run on this calendar's days off; the next field has alternatives.",
    "excluded_day": "Used only with a calendar.",
    "pause_after_failures": "Pause it after this many failed runs in a row. Empty: never.",
    "owner": "Notified when its runs fail: mail addresses or https:// URLs, separated by "
    "commas. Empty: the addresses in ALERTS_TO.",
}
