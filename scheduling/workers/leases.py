"""The leases of this worker's runs, and the statement that renews them.

A hint in a child's hands is known by run, attempt and child: two hints of one run can be here at
the same time, and only one of them has claimed it.
"""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple
from uuid import UUID

from celery.worker import state as worker_state
from django.conf import settings
from django.db import connection

from scheduling.broker.signing import ATTEMPT
from scheduling.ids import claimant_of
from scheduling.models import FINAL, Run, State
from scheduling.runs.running import run_id_of
from scheduling.worker_process import CLAIMANT

STOP_BEFORE = 0.15  # of a lease, before its end: a stop takes a moment

RENEW = """
UPDATE scheduling_run SET lease_expires_at = clock_timestamp() + %(lease)s::interval
 WHERE id = ANY (ARRAY(
        SELECT r.id FROM scheduling_run r
          JOIN unnest(%(ids)s::uuid[], %(attempts)s::int[], %(claimants)s::text[])
               AS here (id, attempt, claimant)
            ON r.id = here.id AND r.attempt = here.attempt
           AND right(r.claim_id::text, 8) = here.claimant
         WHERE r.state = 'running' AND r.worker = %(worker)s
         ORDER BY r.id FOR NO KEY UPDATE OF r SKIP LOCKED))
 RETURNING id, attempt, claim_id, cancel_requested_by
"""


class TakenHint(NamedTuple):
    """A hint that a child has: of which run and attempt, and which child."""

    run_id: UUID
    attempt: int
    claimant: int | None


class Renewed(NamedTuple):
    """The outcome of a renewal of leases.

    `asked` are renewed hints whose runs are cancelled, and who asked. `lost` are hints whose runs
    have ended or are another worker's. `kept` is whether the leases of all others have been renewed
    or are not needed yet.
    """

    asked: dict[TakenHint, str]
    lost: list[TakenHint]
    kept: bool


def active_requests() -> list[Any]:
    """Return the messages that children have."""
    while True:
        try:
            return list(worker_state.active_requests)
        except RuntimeError:  # the main thread added one meanwhile
            continue


def running_here() -> dict[TakenHint, Any]:
    """Return the requests of the hints that children have.

    Celery's own map of requests forgets a run when a second hint of it ends; this set does not.
    """
    running: dict[TakenHint, Any] = {}
    for request in active_requests():
        if ATTEMPT in request.request_dict and (hint := hint_of(request)) is not None:
            running[hint] = request
    return running


def hint_of(request: Any) -> TakenHint | None:
    """Return the hint of a request; None if it cannot be a run's."""
    fields = request.request_dict
    return taken_hint(request.id, fields[ATTEMPT], fields.get(CLAIMANT))


def taken_hint(task_id: str, attempt: Any, claimant: int | None) -> TakenHint | None:
    run_id = run_id_of(task_id)
    if run_id is None or type(attempt) is not int or not 0 < attempt < 2**31:
        return None
    return TakenHint(run_id, attempt, claimant)


def claimed_run(hint: TakenHint, worker: str) -> Run | None:
    """Return the run of a hint if, by the ledger, this worker's child that has it runs it."""
    run = Run.objects.filter(
        pk=hint.run_id,
        attempt=hint.attempt,
        state=State.RUNNING,
        worker=worker,
    ).first()
    return run if run is not None and claimant_of(run.claim_id) == hint.claimant else None


def ours_from(renewed: float) -> float:
    """Return until when a run is surely this worker's whose lease was renewed, or begun, then.

    Both are instants of the monotonic clock.
    """
    return renewed + settings.RUN_LEASE.total_seconds() * (1 - STOP_BEFORE)


def renew(running: Mapping[TakenHint, Any], worker: str) -> Renewed:
    """Renew the leases of these hints' runs, and note on each request until when its run is ours.

    Rows that another transaction has locked are left: their leases go on running out. A hint whose
    run is not claimed yet has a lease to come.
    """
    if not running:
        return Renewed({}, [], kept=True)
    begun = time.monotonic()
    renewed = _renew(running, worker)
    unclaimed, lost = _unclaimed_and_lost(running.keys() - renewed.keys(), worker)
    for hint in [*renewed, *unclaimed]:
        running[hint].ours_until = ours_from(begun)
    asked = {hint: by for hint, by in renewed.items() if by}
    return Renewed(asked, lost, kept=len(renewed) + len(unclaimed) + len(lost) == len(running))


def _renew(running: Mapping[TakenHint, Any], worker: str) -> dict[TakenHint, str]:
    """Renew; return whose lease was renewed, with who asked to cancel it."""
    parameters: dict[str, Any] = {
        "ids": [hint.run_id for hint in running],
        "attempts": [hint.attempt for hint in running],
        "claimants": [f"{hint.claimant or 0:08x}" for hint in running],
        "worker": worker,
        "lease": settings.RUN_LEASE,
    }
    with connection.cursor() as cursor:
        cursor.execute(RENEW, parameters)
        return {
            TakenHint(run_id, attempt, claimant_of(claim_id)): by
            for run_id, attempt, claim_id, by in cursor.fetchall()
        }


def _unclaimed_and_lost(
    missed: set[TakenHint], worker: str
) -> tuple[list[TakenHint], list[TakenHint]]:
    """Ask the ledger why the leases of these hints' runs were not renewed.

    A hint in neither list is this worker's still: another transaction has locked the run's row.
    """
    unclaimed, lost = list[TakenHint](), list[TakenHint]()
    if not missed:
        return unclaimed, lost
    rows = Run.objects.filter(pk__in={hint.run_id for hint in missed})
    columns = ("pk", "attempt", "state", "worker", "claim_id")
    found = {run_id: row for run_id, *row in rows.values_list(*columns)}
    for hint in missed:
        attempt, state, by, claim_id = found.get(hint.run_id, (0, "", "", None))
        ours = by == worker and claimant_of(claim_id) == hint.claimant
        if not attempt or attempt > hint.attempt or state in FINAL:
            lost.append(hint)
        elif attempt < hint.attempt or state != State.RUNNING or not ours:
            unclaimed.append(hint)
    return unclaimed, lost
