"""Finds the failed runs of a trigger."""

from datetime import datetime

from django.db.models import Exists, OuterRef, QuerySet

from scheduling.models import Run, State
from triggers.models import Attempt

FIRE = "triggers.tasks.fire"


def failed_runs(trigger: str, since: datetime) -> QuerySet[Run]:
    """Return the runs of a trigger that have failed since then."""
    attempts = Attempt.objects.filter(trigger__name=trigger, run_id=OuterRef("pk"))
    failed = Run.objects.filter(task=FIRE, state=State.FAILED, finished_at__gte=since)
    return failed.filter(Exists(attempts))
