"""The tables of the ledger.

Who may write what: PeriodicTask and its rules, and Policy, belong to users (admin, API, their own
code, raw SQL). Plan belongs to beat and to the triggers of migration 0002, Run to the functions of
`planning`, `firing`, `enqueueing`, `dispatch`, `execution`, `finishing` and `workers`; no form and
no `save()` ever writes those two.
"""

from datetime import timedelta
from typing import Any, ClassVar

from django.core.exceptions import ValidationError
from django.core.validators import MinValueValidator
from django.db import models
from django.db.models import Q, Value
from django.db.models.functions import Now
from django_celery_beat.models import PeriodicTask
from django_celery_beat.querysets import PeriodicTaskQuerySet

from scheduling.ids import uuid7


class Priority(models.IntegerChoices):
    """The named priorities; the values are Celery's on Redis, where 0 is the highest."""

    FRONT = 0, "front"
    HIGH = 3, "high"
    MEDIUM = 6, "medium"
    LOW = 9, "low"

    @classmethod
    def nearest(cls, number: int | None) -> "Priority":
        """Return the step that Celery's Redis transport sorts `number` into; None is medium."""
        if number is None:
            return cls.MEDIUM
        return next((step for step in reversed(cls) if number >= step), cls.FRONT)


class State(models.TextChoices):
    """Where a run stands; docs/architecture.md has the table of transitions."""

    SCHEDULED = "scheduled", "scheduled"
    HELD = "held", "held"
    QUEUED = "queued", "queued"
    RUNNING = "running", "running"
    SUCCEEDED = "succeeded", "succeeded"
    FAILED = "failed", "failed"
    CANCELLED = "cancelled", "cancelled"
    EXPIRED = "expired", "expired"
    SKIPPED = "skipped", "skipped"


WAITING = (State.SCHEDULED, State.HELD, State.QUEUED)
UNFINISHED = (*WAITING, State.RUNNING)
FINAL = tuple(state for state in State if state not in UNFINISHED)


class Origin(models.TextChoices):
    """What made a run."""

    SCHEDULE = "schedule", "schedule"
    ADHOC = "adhoc", "ad hoc"
    BACKFILL = "backfill", "backfill"
    REPLAY = "replay", "replay"
    FOLLOW_UP = "follow_up", "follow-up"


class Schedule(PeriodicTask):  # type: ignore[misc]
    """A rule and a task: every django-celery-beat PeriodicTask, under the name it has here."""

    objects: ClassVar[Any] = PeriodicTaskQuerySet.as_manager()

    class Meta:
        proxy = True
        verbose_name = "schedule"
        verbose_name_plural = "schedules"


class CatchUp(models.TextChoices):
    """What becomes of occurrences that nobody fired in time."""

    LATEST = "latest", "one run for all that was missed"
    ALL = "all", "a run for each, oldest first"
    NONE = "none", "skip what is later than the grace time"


class Overlap(models.TextChoices):
    """What happens when an occurrence is due while an earlier run is unfinished."""

    ALLOW = "allow", "run beside it"
    SKIP = "skip", "skip the new one"
    QUEUE = "queue", "hold the new one; at most one waits"
    REPLACE = "replace", "cancel the old one, then run"


class ManagedBy(models.TextChoices):
    USER = "user", "users"
    CODE = "code", "code"


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
    """How a schedule is treated; a schedule without one has the defaults."""

    schedule = _one_to_one("policy")
    catch_up = models.CharField(
        max_length=6, choices=CatchUp, default=CatchUp.LATEST, db_default=CatchUp.LATEST
    )
    catch_up_window = models.DurationField(
        null=True,
        blank=True,
        help_text="all: how far back runs are made up for. none: the grace time (1 minute).",
    )
    overlap = models.CharField(
        max_length=7, choices=Overlap, default=Overlap.ALLOW, db_default=Overlap.ALLOW
    )
    spread = models.DurationField(
        default=timedelta(0),
        db_default=timedelta(0),
        validators=[MinValueValidator(timedelta(0))],
        help_text="Start up to this much later, by an offset that is fixed for each schedule.",
    )
    max_attempts = models.PositiveSmallIntegerField(
        null=True, blank=True, validators=[MinValueValidator(1)]
    )
    deadline_after = models.DurationField(
        null=True, blank=True, validators=[MinValueValidator(timedelta(0))]
    )
    paused_at = models.DateTimeField(null=True, blank=True)
    paused_until = models.DateTimeField(null=True, blank=True)
    pause_reason = models.CharField(max_length=500, blank=True, default="", db_default="")
    paused_by = models.CharField(max_length=150, blank=True, default="", db_default="")
    owner = models.CharField(max_length=254, blank=True, default="", db_default="")
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
    """Where a schedule stands. Written by beat and by triggers alone."""

    schedule = _one_to_one("plan")
    next_due_at = models.DateTimeField(null=True)
    needs_plan = models.BooleanField(default=True, db_default=True)
    # The instant of the last edit that changed when it fires; the next plan counts from here.
    plan_from = models.DateTimeField(db_default=Now())
    anchor_at = models.DateTimeField(null=True)
    last_due_at = models.DateTimeField(null=True)
    fired_count = models.PositiveBigIntegerField(default=0, db_default=0)
    # A one-off that has fired; an edit of its own row that changes when it fires arms it again.
    done = models.BooleanField(default=False, db_default=False)
    # The rule that next_due_at was computed from, and by which engine and tzdata.
    rule = models.TextField(default="", db_default="")
    rule_version = models.CharField(max_length=60, default="", db_default="")
    error = models.TextField(default="", db_default="")

    class Meta:
        indexes = (
            models.Index(
                fields=["next_due_at"], name="plan_due", condition=Q(next_due_at__isnull=False)
            ),
            models.Index(fields=["schedule"], name="plan_to_make", condition=Q(needs_plan=True)),
        )

    def __str__(self) -> str:
        return f"plan of schedule {self.schedule_id}: {self.next_due_at or self.error or 'nothing'}"


class Run(models.Model):
    """The row of one occurrence, or of one ad-hoc job. Its id is the Celery task id.

    `due_at` is the nominal instant, `run_at` when it may start. `attempt` counts tries from 1 and
    is the fence: whoever holds an older number can record nothing. `coalesced` counts the missed
    occurrences that this run stands for besides its own.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    # No foreign key: history outlives schedules.
    schedule_id = models.IntegerField(null=True)
    schedule_name = models.CharField(max_length=200, default="", db_default="")
    origin = models.CharField(max_length=9, choices=Origin)
    task = models.CharField(max_length=200)
    # JSON text in kombu's encoding, as the task message would carry it.
    args = models.TextField(default="[]", db_default="[]")
    kwargs = models.TextField(default="{}", db_default="{}")
    options = models.TextField(default="{}", db_default="{}")
    queue = models.CharField(max_length=200)
    priority = models.PositiveSmallIntegerField(
        choices=Priority, default=Priority.MEDIUM, db_default=Priority.MEDIUM.value
    )
    due_at = models.DateTimeField()
    run_at = models.DateTimeField()
    deadline = models.DateTimeField(null=True)
    expires_at = models.DateTimeField(null=True)
    state = models.CharField(
        max_length=9, choices=State, default=State.SCHEDULED, db_default=State.SCHEDULED
    )
    reason = models.TextField(default="", db_default="")
    attempt = models.PositiveIntegerField(default=1, db_default=1)
    failures = models.PositiveIntegerField(default=0, db_default=0)
    # Null: what the job declares, or settings.DEFAULT_MAX_ATTEMPTS.
    max_attempts = models.PositiveIntegerField(null=True)
    worker = models.CharField(max_length=255, default="", db_default="")
    lease_expires_at = models.DateTimeField(null=True)
    cancel_requested_by = models.CharField(max_length=150, default="", db_default="")
    created_at = models.DateTimeField(db_default=Now())
    queued_at = models.DateTimeField(null=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    # One object per failed attempt: attempt, error, traceback, worker, started_at, ended_at.
    errors = models.JSONField(default=list, db_default=Value([], models.JSONField()))
    coalesced = models.PositiveIntegerField(default=0, db_default=0)
    unique_key = models.CharField(max_length=255, null=True)  # noqa: DJ001 (unique only when set)
    enqueued_by = models.CharField(max_length=150, default="", db_default="")
    replay_of = models.UUIDField(null=True)

    # Whether this very call wrote the row; see `enqueue`.
    created: bool = False

    class Meta:
        indexes = (
            models.Index(
                fields=["queue", "priority", "run_at"],
                name="run_scheduled",
                condition=Q(state=State.SCHEDULED),
            ),
            models.Index(fields=["queued_at"], name="run_queued", condition=Q(state=State.QUEUED)),
            models.Index(
                fields=["lease_expires_at"], name="run_running", condition=Q(state=State.RUNNING)
            ),
            models.Index(fields=["schedule_id"], name="run_held", condition=Q(state=State.HELD)),
            models.Index(
                fields=["expires_at"],
                name="run_expiring",
                condition=Q(expires_at__isnull=False, state__in=WAITING),
            ),
            models.Index(
                fields=["schedule_id"],
                name="run_unfinished",
                condition=Q(schedule_id__isnull=False, state__in=UNFINISHED),
            ),
            # With run_one_per_occurrence: the newest runs of a schedule, whatever made them.
            models.Index(
                fields=["schedule_id", "id"],
                name="run_asked_for",
                condition=Q(schedule_id__isnull=False) & ~Q(origin=Origin.SCHEDULE),
            ),
        )
        constraints = (
            models.UniqueConstraint(
                fields=["schedule_id", "due_at"],
                name="run_one_per_occurrence",
                condition=Q(origin=Origin.SCHEDULE),
            ),
            models.UniqueConstraint(
                fields=["unique_key"],
                name="run_one_unfinished_per_key",
                condition=Q(unique_key__isnull=False, state__in=UNFINISHED),
            ),
            models.CheckConstraint(
                # Any other would be pushed to a list in Redis that no worker reads.
                name="run_priority_is_a_step",
                condition=Q(priority__in=[step.value for step in Priority]),
            ),
            models.CheckConstraint(
                name="run_finished_iff_final",
                condition=Q(finished_at__isnull=False, state__in=FINAL)
                | Q(finished_at__isnull=True, state__in=UNFINISHED),
            ),
        )

    def __str__(self) -> str:
        return f"{self.task} {self.id} ({self.state})"


class Heartbeat(models.Model):
    """A beat or a worker that is, or was, alive; each writes its own row."""

    name = models.CharField(max_length=255, primary_key=True)
    service = models.CharField(max_length=10)
    host = models.CharField(max_length=255)
    pid = models.IntegerField()
    version = models.CharField(max_length=100)
    started_at = models.DateTimeField()
    seen_at = models.DateTimeField()
    doing = models.CharField(max_length=200)

    def __str__(self) -> str:
        return self.name
