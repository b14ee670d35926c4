"""The parts of a chord, counted in the transaction of each part's end.

The counter is django-celery-results' own, so that parts which are plain messages count as well.
"""

import json
import logging
from collections.abc import Iterator
from typing import Any

from celery import current_app
from celery.result import GroupResult, result_from_tuple
from django.db import connection
from django_celery_results.models import TaskResult

from scheduling.logs import event

logger = logging.getLogger(__name__)

COUNT = """
UPDATE django_celery_results_chordcounter SET count = count - 1
 WHERE group_id = %s AND count > 0 RETURNING count, sub_tasks
"""
FORGET = "DELETE FROM django_celery_results_chordcounter WHERE group_id = %s"


def count_part(group_id: str) -> Any:
    """Count one part as ended; return the results of all of them if it was the last, or None."""
    with connection.cursor() as cursor:
        cursor.execute(COUNT, [group_id])
        found = cursor.fetchone()
        if found is None:
            event(logger, "chord_unknown", level=logging.WARNING, group=group_id)
            return None
        left, parts = found
        if left:
            return None
        cursor.execute(FORGET, [group_id])
    results = [result_from_tuple(part, app=current_app) for part in json.loads(parts)]
    header = GroupResult(group_id, results, app=current_app)
    _read(header)
    return header


def _read(header: Any) -> None:
    """Read the results of all parts at once; Celery would ask for each."""
    leaves: dict[str, list[Any]] = {}
    for leaf in _leaves(header):
        leaves.setdefault(leaf.id, []).append(leaf)
    backend: Any = current_app.backend
    for row in TaskResult.objects.filter(task_id__in=list(leaves)):
        for leaf in leaves[row.task_id]:
            leaf._maybe_set_cache(
                {
                    "task_id": row.task_id,
                    "status": row.status,
                    "result": backend.decode_content(row, row.result),
                    "traceback": row.traceback,
                }
            )


def _leaves(result: Any) -> Iterator[Any]:
    for part in result.results:
        while part is not None:
            if isinstance(part, GroupResult):
                yield from _leaves(part)
            else:
                yield part
            part = part.parent
