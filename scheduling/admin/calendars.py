"""The page of calendars: their days off, shown for this year and the next."""

from typing import Any, ClassVar

from django import forms
from django.contrib import admin
from django.core.exceptions import ValidationError
from django.db.models import Count, QuerySet
from django.forms import BaseInlineFormSet
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString

from scheduling import clock, recurrence
from scheduling.admin.common.page import Page, link
from scheduling.errors import SchedulingError
from scheduling.models import Calendar, ExcludedDate
from scheduling.recurrence import WEEKDAYS
from scheduling.schedules import calendars as core
from scheduling.schedules import silencing

USERS_SHOWN = 20
# Django refuses a form with too many fields.
DATES_EDITED = 250
TOO_MANY = (
    '<p class="tb-note">This form cannot take {} single dates: change them in code '
    "(ExcludedDate) or with SQL.</p>"
)


class CalendarForm(forms.ModelForm[Calendar]):
    """Weekdays as boxes to tick, countries by name."""

    weekdays = forms.TypedMultipleChoiceField(
        choices=list(enumerate(WEEKDAYS)),
        coerce=int,
        required=False,
        widget=forms.CheckboxSelectMultiple,
        label="Days of the week off",
    )
    country = forms.ChoiceField(
        required=False,
        label="Public holidays of",
        help_text="All public holidays of the country, each year.",
    )

    class Meta:
        model = Calendar
        fields = ("name", "description", "weekdays", "country", "subdivision")
        widgets: ClassVar[dict[str, forms.Widget]] = {
            "description": forms.Textarea(attrs={"rows": 2, "cols": 60}),
        }
        help_texts: ClassVar[dict[str, str]] = {
            "subdivision": "The code of a state or province, such as BY in Germany; its holidays "
            "are off too. Empty: only the holidays of the whole country.",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        fields: dict[str, Any] = self.fields
        if "country" in fields:
            fields["country"].choices = _countries(self.instance.country)

    def _post_clean(self) -> None:
        """Check the calendar's schedules, unless DatesFormSet checks them, with the dates."""
        super()._post_clean()  # type: ignore[misc]
        if not self.errors and self.changed_data and _dates_stand_elsewhere(self.instance):
            try:
                silencing.check_calendar(
                    self.instance, core.days_off_as(self.instance), clock.now()
                )
            except (recurrence.RecurrenceError, SchedulingError) as error:
                self.add_error(None, str(error))


class DatesFormSet(BaseInlineFormSet[ExcludedDate, Calendar, Any]):
    """Refuses days off after which a schedule of the calendar would never run."""

    def clean(self) -> None:
        super().clean()
        calendar = self.instance
        if calendar.pk is None or any(self.errors):
            return
        forms = [form for form in self.forms if form not in self.deleted_forms]
        rows = [form.instance for form in forms if form.instance.date]
        try:
            days_off = core.days_off_as(calendar, {row.date: row.reason for row in rows})
            silencing.check_calendar(calendar, days_off, clock.now())
        except (recurrence.RecurrenceError, SchedulingError) as error:
            raise ValidationError(str(error)) from None


class DateInline(admin.TabularInline[ExcludedDate, Calendar]):
    model = ExcludedDate
    formset = DatesFormSet
    verbose_name = "date off"
    verbose_name_plural = "single dates off"
    fields = ("date", "reason")
    ordering = ("date",)
    extra = 1

    def has_view_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._of_the_calendar("view", request)

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._of_the_calendar("change" if obj else "add", request)

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._of_the_calendar("change" if obj else "add", request)

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return self._of_the_calendar("change", request)

    def _of_the_calendar(self, action: str, request: HttpRequest) -> bool:
        page = self.admin_site.get_model_admin(Calendar)
        return bool(getattr(page, f"has_{action}_permission")(request))


@admin.register(Calendar)
class CalendarAdmin(Page):
    form = CalendarForm
    list_display = ("name", "weekdays_", "holidays", "dates_", "followed_by")
    search_fields = ("name",)
    ordering = ("name",)
    actions = None
    readonly_fields = ("users", "days_off")
    fields = (
        "name",
        "description",
        "weekdays",
        "country",
        "subdivision",
        "users",
        "days_off",
    )

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse for a calendar in use: its schedules would run on days off."""
        if not super().has_delete_permission(request, obj):
            return False
        return obj is None or not obj.policies.exists()

    def delete_model(self, request: HttpRequest, obj: Any) -> None:
        core.remove(obj, by=request.user.get_username())

    def get_inlines(self, request: HttpRequest, obj: Any) -> list[Any]:
        return [] if obj is not None and _dates_stand_elsewhere(obj) else [DateInline]

    def get_queryset(self, request: HttpRequest) -> QuerySet[Any]:
        of = {"date_count": "dates", "user_count": "policies"}
        counts = {name: Count(rows, distinct=True) for name, rows in of.items()}
        calendars: QuerySet[Any] = super().get_queryset(request).annotate(**counts)
        return calendars

    @admin.display(description="days of the week")
    def weekdays_(self, calendar: Any) -> str:
        return ", ".join(WEEKDAYS[number] for number in calendar.weekdays) or "-"

    @admin.display(description="public holidays of")
    def holidays(self, calendar: Any) -> str:
        if not calendar.country:
            return "-"
        name = recurrence.country_names().get(calendar.country, calendar.country)
        return f"{name}, {calendar.subdivision}" if calendar.subdivision else name

    @admin.display(description="single dates")
    def dates_(self, calendar: Any) -> int:
        return int(calendar.date_count)

    @admin.display(description="followed by")
    def followed_by(self, calendar: Any) -> str:
        one = calendar.user_count == 1
        return f"{calendar.user_count:,} schedule{'' if one else 's'}"

    @admin.display(description="followed by")
    def users(self, calendar: Any) -> SafeString | str:
        found = calendar.policies.order_by("schedule__name") if calendar.pk else None
        if found is None or not found.exists():
            return "no schedule yet"
        rows = found.values_list("schedule_id", "schedule__name")[:USERS_SHOWN]
        links = format_html_join(", ", "{}", ((link("schedule", *row),) for row in rows))
        more = calendar.user_count - USERS_SHOWN
        return format_html("{} and {} more", links, f"{more:,}") if more > 0 else links

    @admin.display(description="days off by date")
    def days_off(self, calendar: Any) -> SafeString | str:
        if calendar.pk is None:
            return "Shown once it is saved."
        year = timezone.localtime(clock.now()).year
        try:
            years = [_year(calendar, number) for number in (year, year + 1)]
        except recurrence.RecurrenceError as error:
            return str(error)
        many = calendar.date_count > DATES_EDITED
        note = format_html(TOO_MANY, f"{calendar.date_count:,}") if many else ""
        return format_html("{}{}{}", note, *years)


def _dates_stand_elsewhere(calendar: Calendar) -> bool:
    return calendar.pk is not None and calendar.dates.count() > DATES_EDITED


def _year(calendar: Calendar, year: int) -> SafeString:
    days = [(f"{day:%a %Y-%m-%d}", why) for day, why in core.days_off_of(calendar).days_of(year)]
    if not days:
        return format_html('<p class="tb-note">{}: none except the days of the week.</p>', year)
    rows = format_html_join("", "<tr><td>{}</td><td>{}</td></tr>", days)
    return format_html(
        '<table class="tb-times tb-year"><caption>{}</caption><thead><tr><th scope="col">day</th>'
        '<th scope="col">why</th></tr></thead><tbody>{}</tbody></table>',
        year,
        rows,
    )


def _countries(current: str) -> list[tuple[str, str]]:
    """Return the countries that are known, and the calendar's own if it is unknown."""
    names = sorted(recurrence.country_names().items(), key=lambda entry: entry[1])
    unknown = [(current, f"{current} (unknown)")] if current and current not in dict(names) else []
    return [("", "no country"), *unknown, *((code, f"{name} ({code})") for code, name in names)]
