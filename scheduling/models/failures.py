"""Failures, and groups of failures of one kind."""

from django.db import models
from django.db.models import Q

from scheduling.models.arrays import PlainArrayField
from scheduling.words import News


class Failure(models.Model):
    """A run that has just ended as failed, until beat counts it in its group.

    The statement that ends the run writes it. Each failure has its own row, so that a thousand runs
    that fail at once wait neither for one another nor for a user who edits their group.
    """

    id = models.BigAutoField(primary_key=True)
    run_id = models.UUIDField(unique=True)
    schedule_id = models.IntegerField(null=True)
    schedule_name = models.CharField(max_length=200)
    task = models.CharField(max_length=200)
    exception = models.CharField(max_length=200)
    place = models.CharField(max_length=300)
    error = models.TextField()
    noted_at = models.DateTimeField()
    # This failure paused its schedule, and the owner has not received a message about it yet.
    paused = models.BooleanField(default=False, db_default=False)

    class Meta:
        indexes = (models.Index(fields=["noted_at"], name="failure_noted"),)

    def __str__(self) -> str:
        return f"{self.exception} in {self.task}"


class FailureGroup(models.Model):
    """Failed runs with the same task, exception type and place in the code."""

    # Made of the three, which together are too long for an index; see failures.noting.group_id.
    id = models.UUIDField(primary_key=True, editable=False)
    task = models.CharField(max_length=200)
    exception = models.CharField(max_length=200)
    place = models.CharField(max_length=300, blank=True)
    first_seen_at = models.DateTimeField()
    last_seen_at = models.DateTimeField()
    count = models.PositiveBigIntegerField(default=0)
    last_error = models.TextField()
    last_run_id = models.UUIDField()
    # Names of the schedules it has hit: up to 100 of them.
    schedules = PlainArrayField(models.CharField(max_length=200), default=list)
    # Why the owners are to receive a message; "" if they are not.
    news = models.CharField(max_length=6, choices=News, blank=True, default="", db_default="")
    # Schedules with failures since the last message; "" stands for runs without a schedule.
    untold = PlainArrayField(models.CharField(max_length=200), default=list)
    told_at = models.DateTimeField(null=True)
    # `count` at the last message, and at the last daily digest.
    told_count = models.PositiveBigIntegerField(default=0)
    digest_count = models.PositiveBigIntegerField(default=0)
    resolved_at = models.DateTimeField(null=True)
    resolved_by = models.CharField(max_length=150, blank=True, default="", db_default="")

    class Meta:
        verbose_name = "recurring failure"
        indexes = (
            models.Index(fields=["last_seen_at"], name="failure_group_seen"),
            models.Index(fields=["told_at"], name="failure_group_told"),
            models.Index(fields=["news"], name="failure_group_news", condition=~Q(news="")),
        )

    def __str__(self) -> str:
        return f"{self.exception} in {self.task}"
