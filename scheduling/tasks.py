"""The engine's own jobs: they prune history and report failures.

The modules that they call do the work; `CELERY_BEAT_SCHEDULE` has their times.
"""

from typing import Any

from celery import shared_task

from scheduling import clock
from scheduling.failures import alerts
from scheduling.failures import digest as digests
from scheduling.history import pruning
from scheduling.jobs import Job, current_run
from scheduling.schedules import last_runs


@shared_task
def prune() -> dict[str, int]:
    """Delete the runs that are older than KEEP_RUNS_DAYS and KEEP_FAILED_DAYS; say how many.

    And copy the last runs of schedules that no beat has copied.
    """
    last_runs.copy_forgotten()
    deleted = pruning.prune(clock.now(), pruning.kept_for())
    return {state.value: count for state, count in deleted.items()}


# Beat makes no second run of it while one is unfinished, so this one is tried for a long time.
@shared_task(base=Job, max_attempts=1000)
def alert() -> int:
    """Write a message to each owner of failures that are news, and a run that sends it."""
    return alerts.write_messages()


@shared_task(base=Job)
def digest() -> int:
    """Write to each owner which of their tasks keep failing, and a run that sends each message."""
    return digests.write()


@shared_task(base=Job, max_attempts=alerts.MAX_ATTEMPTS)
def tell(address: str, message: dict[str, Any]) -> str:
    """Send one message to one mail address or URL."""
    run = current_run()
    return alerts.send(address, message, run.id if run else None)
