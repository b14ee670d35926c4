"""The words that columns hold: closed lists, each with its meaning."""

from django.db import models


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
    """The states of a run; docs/architecture.md has the table of transitions."""

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
WAITING_SQL = ", ".join(f"'{state}'" for state in WAITING)
UNFINISHED = (*WAITING, State.RUNNING)
FINAL = tuple(state for state in State if state not in UNFINISHED)


class Origin(models.TextChoices):
    """The ways in which runs are made."""

    SCHEDULE = "schedule", "schedule"
    ADHOC = "adhoc", "ad hoc"
    BACKFILL = "backfill", "backfill"
    REPLAY = "replay", "replay"
    FOLLOW_UP = "follow_up", "follow-up"


class CatchUp(models.TextChoices):
    """The treatment of occurrences that no beat fired in time."""

    LATEST = "latest", "one run for all missed occurrences"
    ALL = "all", "a run for each, oldest first"
    NONE = "none", "skip occurrences later than the grace time"


class Overlap(models.TextChoices):
    """The treatment of an occurrence that is due while an earlier run is unfinished."""

    ALLOW = "allow", "run beside it"
    SKIP = "skip", "skip the new one"
    QUEUE = "queue", "hold the new one; at most one waits"
    REPLACE = "replace", "cancel the old one, then run"


class ExcludedDay(models.TextChoices):
    """The treatment of an occurrence on a day off of the schedule's calendar."""

    SKIP = "skip", "skip it"
    PREVIOUS = "previous", "run on the working day before"
    NEXT = "next", "run on the next working day"


class News(models.TextChoices):
    """Why the owners of a failure group receive a message."""

    NEW = "new", "new"
    BACK = "back", "back again"
    IN_ROW = "in_row", "one after the other"


class ManagedBy(models.TextChoices):
    USER = "user", "users"
    CODE = "code", "code"
