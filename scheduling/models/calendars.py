"""Calendars: named sets of days on which their schedules do not run."""

from typing import Any

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator
from django.db import models
from django.db.models import Q

from scheduling import recurrence
from scheduling.models.arrays import PlainArrayField

ALL_WEEK = list(range(7))


class Calendar(models.Model):
    """Days off: some days of the week, a country's public holidays, and single dates."""

    name = models.CharField(max_length=100, unique=True)
    description = models.TextField(blank=True, default="", db_default="")
    # Monday is 0, as in datetime.date.weekday().
    weekdays = PlainArrayField(
        models.PositiveSmallIntegerField(validators=[MaxValueValidator(6)]),
        default=list,
        blank=True,
    )
    # ISO 3166 codes, as the `holidays` library takes them.
    country = models.CharField(max_length=2, blank=True, default="", db_default="")
    subdivision = models.CharField(max_length=20, blank=True, default="", db_default="")
    # The triggers of migration 0002 change it with the calendar and its dates, so that days off
    # are read again only after a change.
    version = models.PositiveBigIntegerField(default=0, db_default=0, editable=False)

    class Meta:
        constraints = (
            models.CheckConstraint(
                name="calendar_weekdays_are_days",
                condition=Q(weekdays__contained_by=ALL_WEEK),
                violation_error_message="Weekdays are numbers from 0 (Monday) to 6 (Sunday).",
            ),
            models.CheckConstraint(
                name="calendar_leaves_a_weekday",
                condition=~Q(weekdays__contains=ALL_WEEK),
                violation_error_message="All seven days of the week are off, so nothing could ever"
                " run: leave one out.",
            ),
        )

    def __str__(self) -> str:
        return self.name

    def clean(self) -> None:
        if self.subdivision and not self.country:
            raise ValidationError({"subdivision": "A subdivision needs its country."})
        if self.country:
            try:
                recurrence.check_country(self.country, self.subdivision)
            except recurrence.UnknownCountry as error:
                field = "subdivision" if "subdivision" in str(error) else "country"
                raise ValidationError({field: str(error)}) from None


class ExcludedDate(models.Model):
    """One date off, and why."""

    # ON DELETE CASCADE in SQL, made in migration 0002.
    calendar: "models.ForeignKey[Any, Any]" = models.ForeignKey(
        Calendar, on_delete=models.CASCADE, related_name="dates", db_constraint=False
    )
    date = models.DateField()
    reason = models.CharField(max_length=200, blank=True, default="", db_default="")

    class Meta:
        constraints = (
            models.UniqueConstraint(fields=["calendar", "date"], name="excluded_date_once"),
        )

    def __str__(self) -> str:
        return f"{self.date:%Y-%m-%d} {self.reason}".strip()
