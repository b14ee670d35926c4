"""Schedules, their policies (users write them) and their plans (beat writes them)."""

from datetime import timedelta
from typing import Any, ClassVar

from django.core.exceptions import ValidationError
from django.core.validators import MaxValueValidator, MinValueValidator
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django_celery_beat.models import PeriodicTask
from django_celery_beat.querysets import PeriodicTaskQuerySet

from scheduling.models.calendars import Calendar
from scheduling.outgoing.addresses import validate as validate_addresses
from scheduling.words import CatchUp, ExcludedDay, ManagedBy, Overlap


class Schedule(PeriodicTask):  # type: ignore[misc]
    """A rule and a task: every django-celery-beat PeriodicTask, under the name it has here."""

    objects: ClassVar[Any] = PeriodicTaskQuerySet.as_manager()

    class Meta:
        proxy = True
        verbose_name = "schedule"
        verbose_name_plural = "schedules"


# A datetime can hold today's instants plus a hundred years.
LENGTH = [MinValueValidator(timedelta(0)), MaxValueValidator(timedelta(days=36_500))]


def _one_to_one(related_name: str) -> "models.OneToOneField[Any, Any]":
    # The constraint is made in migration 0002, with ON DELETE CASCADE in SQL, so that deleting a
    # schedule by raw SQL works like deleting it in the admin.
    return models.OneToOneField(
        PeriodicTask,
        on_delete=models.DO_NOTHING,
        primary_key=True,
        db_constraint=False,
        related_name=related_name,
    )


class Policy(models.Model):
    """How beat treats a schedule; a schedule without a policy has the defaults."""

    schedule = _one_to_one("policy")
    catch_up = models.CharField(
        max_length=6, choices=CatchUp, default=CatchUp.LATEST, db_default=CatchUp.LATEST
    )
    catch_up_window = models.DurationField(
        null=True,
        blank=True,
        validators=LENGTH,
        help_text="all: how far back runs are made up for. none: the grace time (1 minute).",
    )
    overlap = models.CharField(
        max_length=7, choices=Overlap, default=Overlap.ALLOW, db_default=Overlap.ALLOW
    )
    spread = models.DurationField(
        default=timedelta(0),
        db_default=timedelta(0),
        validators=LENGTH,
        help_text="Start up to this much later, by an offset that is fixed for each schedule.",
    )
    max_attempts = models.PositiveSmallIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1)]
    )
    deadline_after = models.DurationField(null=True, blank=True, validators=LENGTH)
    calendar = models.ForeignKey(
        Calendar,
        on_delete=models.PROTECT,
        null=True,
        blank=True,
        related_name="policies",
        help_text="The days on which it does not run.",
    )
    excluded_day = models.CharField(
        max_length=8, choices=ExcludedDay, default=ExcludedDay.SKIP, db_default=ExcludedDay.SKIP
    )
    pause_after_failures = models.PositiveSmallIntegerField(
        null=True,
        blank=True,
        validators=[MinValueValidator(1)],
        help_text="Pause it when so many of its runs in a row have failed. Empty: never.",
    )
    paused_at = models.DateTimeField(null=True, blank=True)
    paused_until = models.DateTimeField(null=True, blank=True)
    pause_reason = models.CharField(max_length=500, blank=True, default="", db_default="")
    paused_by = models.CharField(max_length=150, blank=True, default="", db_default="")
    # Failures before it do not count for pause_after_failures.
    resumed_at = models.DateTimeField(null=True, blank=True, editable=False)
    # Receives messages about failed runs; see scheduling.outgoing.addresses.
    owner = models.CharField(
        max_length=500, blank=True, default="", db_default="", validators=[validate_addresses]
    )
    managed_by = models.CharField(
        max_length=4, choices=ManagedBy, default=ManagedBy.USER, db_default=ManagedBy.USER
    )

    class Meta:
        verbose_name = "policy"
        verbose_name_plural = "policies"

    def __str__(self) -> str:
        return f"policy of schedule {self.schedule_id}"

    def clean(self) -> None:
        if self.paused_until and not self.paused_at:
            raise ValidationError({"paused_until": "Only a paused schedule has an end of pause."})


class Plan(models.Model):
    """The next due instant of a schedule, or a problem. Only beat and triggers write it."""

    schedule = _one_to_one("plan")
    next_due_at = models.DateTimeField(null=True)
    needs_plan = models.BooleanField(default=True, db_default=True)
    # The instant of the last edit that changed when it fires; the next plan counts from here.
    plan_from = models.DateTimeField(db_default=Now())
    # The first edit since it was planned: until then, occurrences came due by `rule`.
    replaced_at = models.DateTimeField(null=True)
    anchor_at = models.DateTimeField(null=True)
    last_due_at = models.DateTimeField(null=True)
    fired_count = models.PositiveBigIntegerField(default=0, db_default=0)
    # A one-off that has fired; an edit of its own row that changes when it fires arms it again.
    done = models.BooleanField(default=False, db_default=False)
    # The serialised rule of next_due_at, and the engine and tzdata that computed it.
    rule = models.TextField(default="", db_default="")
    rule_version = models.CharField(max_length=60, default="", db_default="")
    error = models.TextField(default="", db_default="")

    class Meta:
        indexes = (
            models.Index(
                fields=["next_due_at"], name="plan_due", condition=Q(next_due_at__isnull=False)
            ),
            # In the order of the edits: plans that are made already lie before those to make.
            models.Index(fields=["plan_from"], name="plan_to_make", condition=Q(needs_plan=True)),
        )

    def __str__(self) -> str:
        return f"plan of schedule {self.schedule_id}: {self.next_due_at or self.error or 'nothing'}"
