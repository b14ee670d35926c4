"""Runs: the row of every occurrence and of every ad-hoc job."""

from django.db import models
from django.db.models import Q, Value
from django.db.models.functions import Now

from scheduling.ids import uuid7
from scheduling.words import FINAL, UNFINISHED, WAITING, Origin, Priority, State


class Run(models.Model):
    """The row of one occurrence, or of one ad-hoc job. Its id is the Celery task id.

    `due_at` is the nominal instant, `run_at` the earliest start. `attempt` counts tries from 1 and
    is the fence: a worker with an older number can record nothing. `coalesced` counts the missed
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
    # Null: the job's own number, or settings.DEFAULT_MAX_ATTEMPTS.
    max_attempts = models.PositiveIntegerField(null=True)
    worker = models.CharField(max_length=255, default="", db_default="")
    lease_expires_at = models.DateTimeField(null=True)
    # Which claim made it running: a worker that lost the answer to its claim may repeat it.
    claim_id = models.UUIDField(null=True)
    cancel_requested_by = models.CharField(max_length=150, default="", db_default="")
    cancel_requested_at = models.DateTimeField(null=True)
    created_at = models.DateTimeField(db_default=Now())
    queued_at = models.DateTimeField(null=True)
    started_at = models.DateTimeField(null=True)
    finished_at = models.DateTimeField(null=True)
    # The time from its deadline to its first start; null without a deadline, or if it was met.
    late_by = models.DurationField(null=True)
    # One object per failed attempt: attempt, error, traceback, worker, started_at, ended_at.
    errors = models.JSONField(default=list, db_default=Value([], models.JSONField()))
    coalesced = models.PositiveIntegerField(default=0, db_default=0)
    unique_key = models.CharField(max_length=255, null=True)  # noqa: DJ001 (unique only when set)
    enqueued_by = models.CharField(max_length=150, default="", db_default="")
    replay_of = models.UUIDField(null=True)
    backfill_id = models.UUIDField(null=True)
    # The run whose end made this one: a link, the next part of a chain, the body of a chord.
    follows = models.UUIDField(null=True)
    # JSON text of the runs that its end sets off, in Celery's words; "" if there are none of them.
    follow_ups = models.TextField(default="", db_default="")
    # The priority it was given, for its replay; null where neither a retry, nor its deadline, nor
    # its age has moved it.
    given_priority = models.PositiveSmallIntegerField(choices=Priority, null=True)

    # Whether this very call wrote the row; see `enqueue`.
    created: bool = False
    # Follow-ups that a replay does not set off again, in words; see `replay`.
    left_out: tuple[str, ...] = ()

    class Meta:
        indexes = (
            models.Index(
                fields=["queue", "priority", "run_at"],
                name="run_scheduled",
                condition=Q(state=State.SCHEDULED),
            ),
            # In the order in which runs come due, over all lanes: finds runs that are new since a
            # look. `attempt > 0` always holds; only a statement that says so uses this index. In
            # other statements Postgres would read past the runs of other lanes.
            models.Index(
                fields=["run_at"],
                name="run_coming",
                condition=Q(state=State.SCHEDULED, attempt__gt=0),
            ),
            models.Index(fields=["queued_at"], name="run_queued", condition=Q(state=State.QUEUED)),
            models.Index(
                fields=["lease_expires_at"], name="run_running", condition=Q(state=State.RUNNING)
            ),
            # Runs of a backfill wait for their turn in it, not for runs of their schedule.
            models.Index(
                fields=["schedule_id", "due_at", "id"],
                name="run_held",
                condition=Q(state=State.HELD, backfill_id__isnull=True),
            ),
            models.Index(
                fields=["expires_at"],
                name="run_expiring",
                condition=Q(expires_at__isnull=False, state__in=WAITING),
            ),
            # By state, so that whether any but held ones are there is seen past a thousand of them.
            models.Index(
                fields=["schedule_id", "state"],
                name="run_unfinished",
                condition=Q(
                    schedule_id__isnull=False, backfill_id__isnull=True, state__in=UNFINISHED
                ),
            ),
            # Runs that a deadline can still escalate: to front when it has passed, to high when it
            # is near. Runs that are escalated already are in neither index.
            models.Index(
                fields=["deadline"],
                name="run_deadline",
                condition=Q(deadline__isnull=False, state__in=WAITING, priority__gt=Priority.FRONT),
            ),
            models.Index(
                fields=["deadline"],
                name="run_deadline_near",
                condition=Q(deadline__isnull=False, state__in=WAITING, priority__gt=Priority.HIGH),
            ),
            models.Index(
                fields=["backfill_id", "due_at"],
                name="run_backfill_held",
                condition=Q(backfill_id__isnull=False, state=State.HELD),
            ),
            models.Index(
                fields=["backfill_id", "state"],
                name="run_backfill",
                condition=Q(backfill_id__isnull=False),
            ),
            # For prune, and the newest failures.
            models.Index(
                fields=["state", "finished_at"],
                name="run_finished",
                condition=Q(finished_at__isnull=False),
            ),
            # The newest runs of a task. Only ends write it: another entry for each version of a
            # row would cost a herd's runs a third more.
            models.Index(
                fields=["task", "id"], name="run_of_task", condition=Q(finished_at__isnull=False)
            ),
            # Runs that have been replayed already.
            models.Index(
                fields=["replay_of"], name="run_replays", condition=Q(replay_of__isnull=False)
            ),
            # For the daily digest.
            models.Index(
                fields=["finished_at"], name="run_late", condition=Q(late_by__isnull=False)
            ),
            # With run_one_per_occurrence: the newest runs of a schedule, of any origin.
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


class Backfill(models.Model):
    """Runs for a schedule's occurrences in a range of the past (or of any time), asked for once.

    Its runs wait as `held`; beat lets so many of them go that `concurrency` are unfinished.
    """

    id = models.UUIDField(primary_key=True, default=uuid7, editable=False)
    schedule_id = models.IntegerField()
    schedule_name = models.CharField(max_length=200)
    # The first and last instants asked for, both included.
    since = models.DateTimeField()
    until = models.DateTimeField()
    concurrency = models.PositiveSmallIntegerField(default=1, db_default=1)
    run_count = models.PositiveIntegerField()
    created_at = models.DateTimeField(db_default=Now())
    created_by = models.CharField(max_length=150, default="", db_default="")
    cancelled_at = models.DateTimeField(null=True)
    cancelled_by = models.CharField(max_length=150, default="", db_default="")

    def __str__(self) -> str:
        return f"{self.schedule_name}, {self.since:%Y-%m-%d} to {self.until:%Y-%m-%d}"
