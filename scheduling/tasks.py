"""The jobs that keep the ledger itself in order; `CELERY_BEAT_SCHEDULE` says when."""

from celery import shared_task

from scheduling import clock, pruning


@shared_task
def prune() -> dict[str, int]:
    """Delete the runs that are older than KEEP_RUNS_DAYS and KEEP_FAILED_DAYS; say how many."""
    deleted = pruning.prune(clock.now(), pruning.kept_for())
    return {state.value: count for state, count in deleted.items()}
