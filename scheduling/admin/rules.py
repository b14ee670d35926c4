"""The pages of rules: crontabs, intervals, instants and solar events, which schedules share.

django-celery-beat's pages list every schedule of a rule in a form of their own, and delete the
schedules with the rule. Here a page links to them, and a rule in use cannot be deleted.
"""

from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.db import models
from django.db.models import QuerySet
from django.db.models.functions import Cast
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django_celery_beat.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    SolarSchedule,
)

from scheduling import clock, recurrence
from scheduling.admin.common.display import MOMENTS, moment
from scheduling.admin.common.filters import LONGEST_NUMBER
from scheduling.admin.common.page import Page
from scheduling.errors import SchedulingError
from scheduling.models import ManagedBy, Schedule
from scheduling.schedules import silencing
from scheduling.schedules.rules import check_length, fields_of, rule_of
from scheduling.schedules.unknown_zones import UnknownZone

CRON_FIELDS = ("minute", "hour", "day_of_month", "month_of_year", "day_of_week")
# The column of PeriodicTask that refers to each table.
COLUMNS: dict[type[models.Model], str] = {
    CrontabSchedule: "crontab",
    IntervalSchedule: "interval",
    ClockedSchedule: "clocked",
    SolarSchedule: "solar",
}


class RuleForm(forms.ModelForm[Any]):
    """Refuses a rule that cannot be read, that never fires, or that would silence a schedule."""

    def _post_clean(self) -> None:
        super()._post_clean()  # type: ignore[misc]
        if self.errors or not self.changed_data:
            return
        now, column = clock.now(), COLUMNS[type(self.instance)]
        schedule = PeriodicTask(**{column: self.instance})
        try:
            check_length(fields_of(schedule))
            recurrence.check(rule_of(schedule, anchor=now), now)
            silencing.check_rule(column, self.instance, now)
        except (recurrence.RecurrenceError, SchedulingError) as error:
            self.add_error(None, str(error))


class CrontabForm(RuleForm):
    """Lists the crontab's own time zone even if it is unknown here."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        zone = self.instance.timezone
        if isinstance(zone, UnknownZone) and "timezone" in self.fields:
            field: Any = self.fields["timezone"]
            field.widget.choices = [(str(zone), f"{zone} (not known here)"), *field.choices]


class RuleAdmin(Page):
    form = RuleForm
    change_form_template = "admin/scheduling/rule_form.html"
    list_display: tuple[str, ...] = ("__str__", "users")
    readonly_fields: ClassVar[tuple[str, ...]] = ("users",)
    ordering = ("-pk",)
    actions = None

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse if only code may change one of the rule's schedules."""
        if not super().has_change_permission(request, obj):
            return False
        return obj is None or not _is_of_code(obj)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse if the rule is in use: its schedules would be deleted too."""
        if not super().has_delete_permission(request, obj):
            return False
        return obj is None or not _users_of(obj).exists()

    @admin.display(description="used by")
    def users(self, rule: models.Model) -> SafeString | str:
        if rule.pk is None:
            return "no schedule yet"
        page = reverse("admin:scheduling_schedule_changelist")
        value = f"{COLUMNS[type(rule)]}-{rule.pk}"
        return format_html('<a href="{}?rule={}">its schedules</a>', page, value)

    def render_change_form(
        self, request: HttpRequest, context: dict[str, Any], *args: Any, **kwargs: Any
    ) -> HttpResponse:
        obj = kwargs.get("obj")
        context["of_code"] = obj is not None and _is_of_code(obj)
        return super().render_change_form(request, context, *args, **kwargs)


class CrontabAdmin(RuleAdmin):
    form = CrontabForm
    list_display = ("__str__", "in_words", "users")
    fields = (*CRON_FIELDS, "timezone", "in_words", "users")
    readonly_fields = ("in_words", "users")
    search_fields = CRON_FIELDS
    search_help_text = "The rule's beginning, such as “0 5 * *”, or a part of the time zone's name."

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name == "timezone":
            # Django would read the initial value, as the name of a file, without a check.
            kwargs["show_hidden_initial"] = False
        return super().formfield_for_dbfield(db_field, request, **kwargs)

    @admin.display(description="human readable")
    def in_words(self, crontab: Any) -> str:
        try:
            return str(crontab.human_readable)
        except Exception:  # two parsers read the field, and raise many types
            return "this crontab cannot be read"

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        """Compare the words with the five fields in turn, and names of time zones with the zone.

        The last field can be incomplete.
        """
        words = search_term.split()
        zones = [word for word in words if word[0].isalpha() and ("/" in word or word == "UTC")]
        parts = [word for word in words if word not in zones][: len(CRON_FIELDS)]
        for zone in zones:
            queryset = queryset.filter(timezone__icontains=zone)
        for field, part in zip(CRON_FIELDS, parts[:-1], strict=False):
            queryset = queryset.filter(**{field: part})
        if parts:
            queryset = queryset.filter(**{f"{CRON_FIELDS[len(parts) - 1]}__startswith": parts[-1]})
        return queryset, False


class IntervalAdmin(RuleAdmin):
    search_fields = ("every", "period")
    search_help_text = "A number and a unit, such as “5 min”."

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        for word in search_term.split():
            number = word.isdecimal() and len(word) <= LONGEST_NUMBER
            queryset = queryset.filter(**{"every" if number else "period__istartswith": word})
        return queryset, False


class ClockedAdmin(RuleAdmin):
    formfield_overrides = MOMENTS
    search_fields = ("clocked_time",)
    search_help_text = "The beginning of the time in UTC, such as “2026-03-29”."

    def get_search_results(
        self, request: HttpRequest, queryset: QuerySet[Any], search_term: str
    ) -> tuple[QuerySet[Any], bool]:
        text = Cast("clocked_time", models.CharField())
        return queryset.alias(text=text).filter(text__startswith=search_term.strip()), False


class SolarAdmin(RuleAdmin):
    search_fields = ("event",)


def _is_of_code(rule: models.Model) -> bool:
    return _users_of(rule).filter(policy__managed_by=ManagedBy.CODE).exists()


def _users_of(rule: models.Model) -> QuerySet[Any]:
    users: QuerySet[Any] = Schedule.objects.filter(**{COLUMNS[type(rule)]: rule.pk})
    return users


for model, page in (
    (CrontabSchedule, CrontabAdmin),
    (IntervalSchedule, IntervalAdmin),
    (ClockedSchedule, ClockedAdmin),
    (SolarSchedule, SolarAdmin),
):
    admin.site.unregister(model)
    admin.site.register(model, page)

# The text of such a row in boxes, titles and schedules. django-celery-beat's own text raises an
# error at either end of datetime's years.
ClockedSchedule.__str__ = lambda clocked: moment(clocked.clocked_time)
