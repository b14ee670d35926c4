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
from scheduling.execution import claiming
from scheduling.ids import claimant_of
from scheduling.models import FINAL, Run, State
from scheduling.runs.running import run_id_of

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


class Held(NamedTuple):
    """A hint that a child has: of which run and attempt, and which child."""

    run_id: UUID
    attempt: int
    claimant: int | None


class Renewed(NamedTuple):
    """What became of the leases of what runs here.

    `asked` are those renewed that shall be cancelled, with who asked. `lost` are other workers'
    now, or have ended. `kept` is whether the leases of all others have been renewed, or are not
    needed yet.
    """

    asked: dict[Held, str]
    lost: list[Held]
    kept: bool


def active_requests() -> list[Any]:
    """Return the messages that children have."""
    while True:
        try:
            return list(worker_state.active_requests)
        except RuntimeError:  # the main thread added one meanwhile
            continue


def running_here() -> dict[Held, Any]:
    """Return the requests of the hints that children have.

    Celery's own map of requests forgets a run when a second hint of it ends; this set does not.
    """
    running: dict[Held, Any] = {}
    for request in active_requests():
        if ATTEMPT in request.request_dict and (held := held_by(request)) is not None:
            running[held] = request
    return running


def held_by(request: Any) -> Held | None:
    """Return what the child of this request has; None if no run can be meant."""
    told = request.request_dict
    return held_as(request.id, told[ATTEMPT], told.get(claiming.CLAIMANT))


def held_as(task_id: str, attempt: Any, claimant: int | None) -> Held | None:
    run_id = run_id_of(task_id)
    if run_id is None or type(attempt) is not int or not 0 < attempt < 2**31:
        return None
    return Held(run_id, attempt, claimant)


def claimed_run(held: Held) -> Run | None:
    """Return the run of a hint if, by the ledger, the child that has the hint runs it."""
    run = Run.objects.filter(
        pk=held.run_id,
        attempt=held.attempt,
        state=State.RUNNING,
        worker=claiming.worker_name,
    ).first()
    return run if run is not None and claimant_of(run.claim_id) == held.claimant else None


def ours_from(renewed: float) -> float:
    """Return until when a run is surely this worker's whose lease was renewed, or begun, then.

    Both are instants of the monotonic clock.
    """
    return renewed + settings.RUN_LEASE.total_seconds() * (1 - STOP_BEFORE)


def renew(running: Mapping[Held, Any]) -> Renewed:
    """Renew the leases of these hints' runs, and note on each request until when its run is ours.

    Rows that another transaction has locked are left: their leases go on running out. A hint whose
    run is not claimed yet has a lease to come.
    """
    if not running:
        return Renewed({}, [], kept=True)
    begun = time.monotonic()
    renewed = _renew(running)
    unclaimed, lost = _unclaimed_and_lost(running.keys() - renewed.keys())
    for held in [*renewed, *unclaimed]:
        running[held].ours_until = ours_from(begun)
    asked = {held: by for held, by in renewed.items() if by}
    return Renewed(asked, lost, kept=len(renewed) + len(unclaimed) + len(lost) == len(running))


def _renew(running: Mapping[Held, Any]) -> dict[Held, str]:
    """Renew; return whose lease was renewed, with who asked to cancel it."""
    parameters: dict[str, Any] = {
        "ids": [held.run_id for held in running],
        "attempts": [held.attempt for held in running],
        "claimants": [f"{held.claimant or 0:08x}" for held in running],
        "worker": claiming.worker_name,
        "lease": settings.RUN_LEASE,
    }
    with connection.cursor() as cursor:
        cursor.execute(RENEW, parameters)
        return {
            Held(run_id, attempt, claimant_of(claim_id)): by
            for run_id, attempt, claim_id, by in cursor.fetchall()
        }


def _unclaimed_and_lost(missed: set[Held]) -> tuple[list[Held], list[Held]]:
    """Ask what has become of the runs whose lease was not renewed.

    What is in neither list is this worker's still: another transaction has locked its row.
    """
    unclaimed, lost = list[Held](), list[Held]()
    if not missed:
        return unclaimed, lost
    rows = Run.objects.filter(pk__in={held.run_id for held in missed})
    columns = ("pk", "attempt", "state", "worker", "claim_id")
    found = {run_id: row for run_id, *row in rows.values_list(*columns)}
    for held in missed:
        attempt, state, worker, claim_id = found.get(held.run_id, (0, "", "", None))
        ours = worker == claiming.worker_name and claimant_of(claim_id) == held.claimant
        if not attempt or attempt > held.attempt or state in FINAL:
            lost.append(held)
        elif attempt < held.attempt or state != State.RUNNING or not ours:
            unclaimed.append(held)
    return unclaimed, lost
