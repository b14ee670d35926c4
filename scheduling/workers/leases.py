"""Leases: which runs this worker has, and the statement that keeps them."""

from typing import Any, NamedTuple
from uuid import UUID

from celery.worker import state as worker_state
from django.conf import settings
from django.db import connection

from scheduling.broker.transport import ATTEMPT
from scheduling.execution import claiming
from scheduling.models import Run
from scheduling.runs.running import run_id_of

RENEW = """
UPDATE scheduling_run SET lease_expires_at = clock_timestamp() + %(lease)s::interval
 WHERE id = ANY (ARRAY(
        SELECT id FROM scheduling_run
         WHERE id = ANY(%(ids)s) AND state = 'running' AND worker = %(worker)s
         ORDER BY id FOR NO KEY UPDATE SKIP LOCKED))
 RETURNING id, attempt, cancel_requested_by
"""


class Asked(NamedTuple):
    """A running attempt that somebody asked to cancel."""

    attempt: int
    by: str


def active_requests() -> list[Any]:
    """Return the messages that children have."""
    while True:
        try:
            return list(worker_state.active_requests)
        except RuntimeError:  # the main thread added one meanwhile
            continue


def running_here() -> dict[UUID, Any]:
    """Return what children work on. Of two hints of one run the first began: it has the run.

    Celery's own map of requests forgets a run when a second hint of it ends; this set does not.
    """
    running: dict[UUID, Any] = {}
    for request in sorted(active_requests(), key=lambda request: request.time_start or 0):
        if ATTEMPT in request.request_dict and (run_id := run_id_of(request.id)):
            running.setdefault(run_id, request)
    return running


def renew(running: dict[UUID, Any]) -> tuple[dict[UUID, Asked], list[UUID]]:
    """Renew the leases of these hints' runs.

    Returns:
        The runs whose cancellation was asked for, and those that are at a later attempt than their
        hint: somebody else's. A hint whose run is not claimed yet, or has ended just now, is
        neither.
    """
    if not running:
        return {}, []
    parameters: dict[str, Any] = {
        "ids": list(running),
        "worker": claiming.worker_name,
        "lease": settings.RUN_LEASE,
    }
    with connection.cursor() as cursor:
        cursor.execute(RENEW, parameters)
        ours = {row[0]: Asked(*row[1:]) for row in cursor.fetchall()}
    others = Run.objects.filter(pk__in=running.keys() - ours.keys()).values_list("pk", "attempt")
    elsewhere = [
        run_id for run_id, attempt in others if attempt > running[run_id].request_dict[ATTEMPT]
    ]
    return {run_id: asked for run_id, asked in ours.items() if asked.by}, elsewhere
