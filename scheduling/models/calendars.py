"""Named calendars: the days on which a schedule that follows one does not run."""

from django.contrib.postgres.fields import ArrayField
from django.db import models


class Calendar(models.Model):
    """Days off: some days of the week, a country's public holidays, and single dates."""

    name = models.CharField(max_length=100, unique=True)
    description = models.TextField(blank=True, default="", db_default="")
    # Monday is 0, as in datetime.date.weekday().
    weekdays = ArrayField(models.PositiveSmallIntegerField(), default=list, blank=True)
    # ISO 3166 codes, as the `holidays` library takes them.
    country = models.CharField(max_length=2, blank=True, default="", db_default="")
    subdivision = models.CharField(max_length=20, blank=True, default="", db_default="")

    def __str__(self) -> str:
        return self.name


class ExcludedDate(models.Model):
    """One date off, and why."""

    calendar = models.ForeignKey(Calendar, on_delete=models.CASCADE, related_name="dates")
    date = models.DateField()
    reason = models.CharField(max_length=200, blank=True, default="", db_default="")

    class Meta:
        constraints = (
            models.UniqueConstraint(fields=["calendar", "date"], name="excluded_date_once"),
        )

    def __str__(self) -> str:
        return f"{self.date:%Y-%m-%d} {self.reason}".strip()
