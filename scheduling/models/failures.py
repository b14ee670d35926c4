"""Recurring errors: the failures of a task that are of one kind."""

from django.contrib.postgres.fields import ArrayField
from django.db import models


class FailureGroup(models.Model):
    """Failures with the same task, exception type and place in the code."""

    task = models.CharField(max_length=200)
    exception = models.CharField(max_length=200)
    place = models.CharField(max_length=300, blank=True)
    first_seen_at = models.DateTimeField()
    last_seen_at = models.DateTimeField()
    count = models.PositiveBigIntegerField()
    last_error = models.TextField()
    last_run_id = models.UUIDField()
    # Names of the schedules it has hit: up to 100 of them.
    schedules = ArrayField(models.CharField(max_length=200), default=list)
    told_at = models.DateTimeField(null=True)
    resolved_at = models.DateTimeField(null=True)
    resolved_by = models.CharField(max_length=150, blank=True, default="", db_default="")

    class Meta:
        constraints = (
            models.UniqueConstraint(
                fields=["task", "exception", "place"], name="failure_group_once"
            ),
        )

    def __str__(self) -> str:
        return f"{self.exception} in {self.task}"
