"""The form of a schedule: checks its values and words its errors."""

import copy
from typing import Any, ClassVar

from django import forms
from kombu.utils.json import loads

from scheduling import clock, recurrence
from scheduling.errors import EnqueueError
from scheduling.models import Policy, Priority, Schedule
from scheduling.registry import check_call, decode_error, get_job, job_names
from scheduling.schedules.rules import check_length, fields_of, rule_of
from scheduling.task_options import DESTINATION, options_of

RULES = ("crontab", "interval", "clocked", "solar")
# A change of these can make a rule that never fires.
TIMING = {*RULES, "start_time", "expires", "one_off", "enabled"}
CALL = {"task", "args", "kwargs"}
PREVIEW = "_preview"  # the button that previews a change


class ScheduleForm(forms.ModelForm[Schedule]):
    """Refuses schedules that could not run: an unknown task, wrong arguments, a dead rule."""

    fits = False

    # Any name is accepted here, so that the message for an unknown name can suggest a similar one.
    task = forms.CharField(
        max_length=200,
        widget=forms.Select(),
        help_text="The registered jobs: the functions marked @shared_task in an app's tasks.py.",
    )
    priority = forms.TypedChoiceField(
        coerce=int,
        empty_value=None,
        required=False,
        help_text="Which runs start first when more are due than the workers can take.",
    )

    class Meta:
        model = Schedule
        fields = (
            "name", "task", "enabled", "description",
            *RULES, "start_time", "expires", "one_off",
            "args", "kwargs", "queue", "exchange", "routing_key", "priority", "expire_seconds",
            "headers",
        )  # fmt: skip
        widgets: ClassVar[dict[str, forms.Widget]] = {
            "args": forms.Textarea(attrs={"rows": 2, "cols": 60, "spellcheck": "false"}),
            "kwargs": forms.Textarea(attrs={"rows": 2, "cols": 60, "spellcheck": "false"}),
            "headers": forms.Textarea(attrs={"rows": 1, "cols": 60, "spellcheck": "false"}),
            "description": forms.Textarea(attrs={"rows": 2, "cols": 60}),
        }
        labels: ClassVar[dict[str, str]] = {
            "crontab": "Crontab",
            "interval": "Interval",
            "clocked": "Once, at",
            "solar": "Solar event",
            "start_time": "Not before",
            "expires": "Not after",
            "one_off": "Only once",
            "args": "Arguments",
            "kwargs": "Keyword arguments",
            "queue": "Queue",
            "exchange": "Exchange",
            "routing_key": "Routing key",
            "expire_seconds": "Useless after (seconds)",
            "headers": "Message headers",
        }
        help_texts: ClassVar[dict[str, str]] = {
            "name": "A short name that no other schedule has.",
            "enabled": "A disabled schedule never runs. To stop it for a while, pause it.",
            "description": "Its purpose, and what to do when it fails.",
            "crontab": "Times of day and days, on the clocks of a time zone. Type a rule to find "
            "it (0 5 * * 1); the plus sign makes a new one.",
            "interval": "At equal distances, counted from a fixed start.",
            "clocked": "One instant. The schedule then runs once.",
            "solar": "Sunrise, sunset or another event of the sun, at a place.",
            "start_time": "The first occurrence is the rule's first one at or after this time.",
            "expires": "No occurrence is after this time.",
            "one_off": "Run at the rule's first occurrence only.",
            "args": 'A JSON array, such as ["north", 3]. Checked against the task.',
            "kwargs": 'A JSON object, such as {"region": "north"}. Checked against the task.',
            "queue": "Empty: the queue that CELERY_TASK_ROUTES, or the task, names.",
            "exchange": "With a routing key: finds the queue that CELERY_TASK_QUEUES binds to it. "
            "Seldom needed.",
            "routing_key": "Used with an exchange, or with a queue of a topic exchange.",
            "expire_seconds": "A run that has not started this long after it was due expires. "
            "Empty: it always runs.",
            "headers": "A JSON object, sent with the message. Seldom needed.",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # For a user who must not change the schedule, Django shows it without form fields.
        fields: dict[str, Any] = self.fields
        if "task" in fields:
            fields["task"].widget.choices = task_choices(self.instance.task)
        if "priority" in fields:
            fields["priority"].choices = priority_choices(self.instance.priority)

    def is_valid(self) -> bool:
        """Return whether to save the form: a valid preview is shown again, not saved."""
        self.fits = super().is_valid()
        return self.fits and not self.is_preview

    @property
    def is_preview(self) -> bool:
        return PREVIEW in self.data

    def clean_task(self) -> str:
        name: str = self.cleaned_data["task"]
        if CALL & set(self.changed_data) or self.data.get("enabled"):
            try:
                get_job(name)
            except EnqueueError as error:
                raise forms.ValidationError(str(error)) from None
        return name

    def clean_args(self) -> str:
        args: str = self.cleaned_data["args"].strip() or "[]"
        return self._json(args, "{}", args)

    def clean_kwargs(self) -> str:
        kwargs: str = self.cleaned_data["kwargs"].strip() or "{}"
        return self._json("[]", kwargs, kwargs)

    def clean_headers(self) -> str:
        headers: str = (self.cleaned_data["headers"] or "").strip() or "{}"
        if problem := decode_error("[]", headers):
            raise forms.ValidationError(problem.replace("kwargs", "headers", 1))
        return headers

    def clean(self) -> dict[str, Any]:
        data = super().clean() or self.cleaned_data
        if data.get("clocked"):
            data["one_off"] = True  # django-celery-beat requires it: an instant comes once
        if data.get("expires") and data.get("expire_seconds") is not None:
            # django-celery-beat's own rule, with the message beside the field.
            self.add_error("expire_seconds", "Give this or “Not after”, not both.")
        changed = {*CALL, *DESTINATION} & set(self.changed_data)
        if data.keys() >= CALL and (data.get("enabled") or changed):
            self._check_call(data)
        return data

    def _post_clean(self) -> None:
        """Check the rule after the form has set it, and after django-celery-beat's own checks."""
        super()._post_clean()  # type: ignore[misc]
        timing = TIMING & set(self.changed_data)
        if not self.errors and "interval" in timing:
            self._check_length()
        if not self.errors and self.instance.enabled and timing:
            self._check_rule()

    def _json(self, args: str, kwargs: str, text: str) -> str:
        if problem := decode_error(args, kwargs):
            raise forms.ValidationError(problem)
        return text

    def _check_call(self, data: dict[str, Any]) -> None:
        try:
            call = loads(data["args"]), loads(data["kwargs"])
            check_call(data["task"], *call)
        except EnqueueError as error:
            self.add_error("args", str(error))
            return
        columns = {name: data.get(name) for name in ("queue", "exchange", "routing_key")}
        asked = {name: value for name, value in columns.items() if value}
        try:
            options_of(data["task"], *call, asked)
        except EnqueueError as error:
            self.add_error(next(iter(asked), "queue"), str(error))

    def _check_length(self) -> None:
        try:
            check_length(fields_of(self.instance))
        except recurrence.RecurrenceError as error:
            self.add_error("interval", str(error))

    def _check_rule(self) -> None:
        now, bare = clock.now(), copy.copy(self.instance)
        bare.policy = Policy()  # its calendar may change too: PolicyFormSet checks both
        try:
            recurrence.check(rule_of(bare, anchor=now), now)
        except recurrence.RecurrenceError as error:
            field = next((name for name in RULES if self.cleaned_data.get(name)), None)
            self.add_error(field, str(error))


def task_choices(current: str) -> list[tuple[str, str]]:
    """Return the registered jobs, and the schedule's task if it is not registered."""
    names = job_names()
    unknown = [(current, f"{current} (not registered)")] if current and current not in names else []
    return [("", "---------"), *unknown, *((name, name) for name in names)]


def priority_choices(current: int | None) -> list[tuple[str, str]]:
    """Return the named priorities, and the schedule's own number if it has no name."""
    choices = [("", "medium (default)"), *((str(step.value), step.label) for step in Priority)]
    if current is not None and current not in Priority.values:
        choices.append((str(current), f"{current} (as {Priority.nearest(current).label})"))
    return choices
