"""Counts the parts of a chord, in the transaction of each part's end.

The counter is django-celery-results' own, so that parts which are plain messages count as well.
"""

import json
import logging
from collections.abc import Iterable, Iterator
from typing import Any

from celery import current_app, states
from celery.exceptions import ChordError
from celery.result import GroupResult, result_from_tuple
from django.db import connection
from django_celery_results.models import (  # type: ignore[attr-defined]
    ChordCounter,
    TaskResult,
)

from scheduling import celery_internals
from scheduling.logs import event
from scheduling.runs.follow_ups import sender

logger = logging.getLogger(__name__)

COUNT = """
UPDATE django_celery_results_chordcounter SET count = count - 1
 WHERE group_id = %s AND count > 0 RETURNING count, sub_tasks
"""
FORGET = "DELETE FROM django_celery_results_chordcounter WHERE group_id = %s"
ADD = """
UPDATE django_celery_results_chordcounter
   SET count = count + %s, sub_tasks = (sub_tasks::jsonb || %s::jsonb)::text
 WHERE group_id = %s
"""


def begin(group_id: str, parts: Iterable[Any]) -> None:
    """Store the counter of a new chord; the tasks of a group in its header count one by one.

    Args:
        group_id: the id of its header.
        parts: the results of the header's tasks. A generator is read to its end: the counter must
            know all parts before the first one ends.
    """
    parts = list(parts)
    ChordCounter.objects.create(
        group_id=group_id, sub_tasks=_encoded(parts), count=sum(map(size, parts))
    )


def _encoded(parts: Iterable[Any]) -> str:
    return json.dumps([part.as_tuple() for part in parts])


def add_part(group_id: str, part: Any) -> None:
    """Add one more part to a chord that has begun."""
    with connection.cursor() as cursor:
        cursor.execute(ADD, [size(part), _encoded([part]), group_id])
        if not cursor.rowcount:
            event(logger, "chord_unknown", level=logging.WARNING, group=group_id)


def size(result: Any) -> int:
    """Return how many tasks must end before `result` is complete."""
    return sum(map(size, result.results or ())) if isinstance(result, GroupResult) else 1


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
    return GroupResult(group_id, results, app=current_app)


def values_of(header: Any) -> list[Any]:
    """Return the values of a chord's parts, with which its body is called.

    Raises:
        ChordError: a part failed, whose error is the cause; or a part left no result.
    """
    stored = _stored([leaf.id for leaf in _leaves(header)])
    for leaf in _leaves(header):
        if not celery_internals.keep_result(
            leaf, stored.get(leaf.id)
        ):  # a plain message whose task ignores its result
            raise ChordError("a part of it has left no result")
        if isinstance(leaf.result, ChordError) and leaf.state == states.FAILURE:
            raise leaf.result  # it names the part of the inner chord that failed
        if leaf.state in states.PROPAGATE_STATES:
            message = f"Dependency {leaf.id} raised {leaf.result!r}"
            raise ChordError(message) from leaf.result
    values: list[Any] = _values(header)
    return values


def _stored(task_ids: list[str]) -> dict[str, dict[str, Any]]:
    """Read the results of all parts at once; Celery would ask for each."""
    rows = TaskResult.objects.filter(task_id__in=task_ids)
    stored = {row.task_id: _meta(row.task_id, row) for row in rows}
    ending = sender()
    if ending is not None and ending.result is not None:  # its row is written last
        stored[str(ending.id)] = _meta(str(ending.id), ending.result)
    return stored


def _meta(task_id: str, stored: Any) -> dict[str, Any]:
    backend: Any = current_app.backend
    return {
        "task_id": task_id,
        "status": stored.status,
        "result": backend.decode_content(stored, stored.result),
        "traceback": stored.traceback,
    }


def _leaves(result: Any) -> Iterator[Any]:
    if not isinstance(result, GroupResult):
        yield result
        return
    for part in result.results or ():
        yield from _leaves(part)


def _values(result: Any) -> Any:
    return [_values(part) for part in result] if isinstance(result, GroupResult) else result.result
