"""cancel: ends waiting runs at once, and asks the workers of running ones to end them."""

import time
from uuid import UUID

from django.db import transaction
from django.db.models import QuerySet
from django.db.models.functions import Coalesce, Now

from scheduling.errors import RowLockedError, SchedulingError
from scheduling.execution.closing import close_waiting
from scheduling.models import FINAL, WAITING_SQL, Run, State

PATIENCE = 5.0  # seconds for which a cancel waits for a row that another transaction has locked


def cancel(run_id: UUID, *, by: str) -> Run:
    """Cancel a run: at once if it waits; if it runs, its worker is asked to end it.

    Returns:
        The run as it stands now: cancelled, or running with `cancel_requested_by` set.

    Raises:
        SchedulingError: the run does not exist, or is final already.
        RowLockedError: another transaction has locked its row for PATIENCE seconds.
    """
    where = f"id = %(id)s AND state IN ({WAITING_SQL})"
    until = time.monotonic() + PATIENCE
    while True:
        if close_waiting(where, State.CANCELLED, f"cancelled by {by}", {"id": run_id, "limit": 1}):
            return Run.objects.get(pk=run_id)
        asked = ask_to_end(Run.objects.filter(pk=run_id), by=by)
        run = Run.objects.filter(pk=run_id).first()
        if run is None:
            raise SchedulingError(f"no run has the id {run_id}.")
        if asked:
            return run
        if run.state in FINAL:
            raise SchedulingError(f"run {run_id} is {run.state} already: nothing to cancel.")
        if time.monotonic() > until:
            raise RowLockedError(
                f"run {run_id} is locked by another transaction: cancel it again in a moment."
            )
        time.sleep(0.01)  # beat or a claim has locked it, or it has only just begun to run


def ask_to_end(runs: QuerySet[Run], *, by: str) -> int:
    """Ask the workers of running ones among `runs` to end them; return how many.

    Rows that another transaction has locked are left out.
    """
    free = runs.filter(state=State.RUNNING).select_for_update(skip_locked=True, no_key=True)
    with transaction.atomic(savepoint=False):
        return Run.objects.filter(pk__in=list(free.values_list("pk", flat=True))).update(
            cancel_requested_by=by[:150], cancel_requested_at=Coalesce("cancel_requested_at", Now())
        )


def cancel_waiting(run_id: UUID, *, by: str, attempt: int | None = None) -> bool:
    """Cancel a run if it waits, at `attempt` if given; return whether it was cancelled."""
    where = f"""
        id = %(id)s AND state IN ({WAITING_SQL}) AND attempt = COALESCE(%(attempt)s::int, attempt)
    """
    parameters = {"id": run_id, "attempt": attempt, "limit": 1}
    return close_waiting(where, State.CANCELLED, f"cancelled by {by}", parameters) > 0


def cancel_waiting_of(schedule_id: int, *, reason: str) -> int:
    """Cancel the waiting runs of one schedule, except for its backfills; return how many."""
    where = f"schedule_id = %(schedule_id)s AND backfill_id IS NULL AND state IN ({WAITING_SQL})"
    parameters = {"schedule_id": schedule_id, "limit": 10_000}
    return close_waiting(where, State.CANCELLED, reason, parameters)


def cancel_waiting_of_backfill(backfill_id: UUID, *, by: str) -> int:
    """Cancel some waiting runs of one backfill; return how many, 0 if no run waits any more."""
    where = f"backfill_id = %(backfill_id)s AND state IN ({WAITING_SQL})"
    parameters = {"backfill_id": backfill_id, "limit": 10_000}
    return close_waiting(where, State.CANCELLED, f"backfill cancelled by {by}", parameters)
