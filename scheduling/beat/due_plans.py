"""Locks the plans whose instant has come, and reads plans that are alike as one."""

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from scheduling.beat.deciding import Due
from scheduling.postgres.prepared import run_prepared
from scheduling.schedules.rules import RULE_COLUMNS, RULE_JOINS, with_fields


class Alike(NamedTuple):
    """Due plans that are alike: the first one, and the schedule ids and arguments of all."""

    like: Due
    schedule_ids: list[int]
    args: list[str]
    kwargs: list[str]


def bounded(column: str) -> str:
    """Return SQL for an interval that Python can hold: a million days at most; NULL stays NULL."""
    low, high = "interval '-1000000 days'", "interval '1000000 days'"
    return (
        f"CASE WHEN {column} < {low} THEN {low} WHEN {column} > {high} THEN {high} "
        f"ELSE {column} END"
    )


# Fields of Due that differ between plans which are alike: those of the first plan stand for all.
OF_THE_FIRST = {
    "now": "statement_timestamp()",
    "schedule_id": "t.ids[1]",
    "args": "t.args[1]",
    "kwargs": "t.kwargs[1]",
}
COLUMNS = Due._fields[: Due._fields.index("fields")]
# The columns that a decision rests on; it also rests on the number of unfinished runs and on
# arguments that cannot be read. A column that counts only under one condition is NULL otherwise, so
# that more plans are alike. `alone` marks a plan that cannot share a decision: its schedule has an
# offset of its own, or its arguments are too long for an array.
ALIKE_IN = (
    *(column for column in COLUMNS if column not in OF_THE_FIRST),
    "alone", "start_time", "expires", "calendar_id", "excluded_day", "crontab_id", "interval_id",
    "clocked_id", "solar_id",
)  # fmt: skip
OTHER_FORM = {"replaced_at": "COALESCE(t.replaced_at, statement_timestamp())", **OF_THE_FIRST}
DUE_COLUMNS = ", ".join(OTHER_FORM.get(column, f"t.{column}") for column in COLUMNS)

# One row for the plans that are alike. The bound `low` skips dead entries at the beginning of the
# index, which stay there while an old snapshot is open.
LOCK_DUE = f"""
WITH due AS MATERIALIZED (
    SELECT * FROM scheduling_plan
     WHERE next_due_at <= statement_timestamp() AND next_due_at > %(low)s
     ORDER BY next_due_at LIMIT %(limit)s FOR NO KEY UPDATE SKIP LOCKED),
plans AS (
    SELECT t.id, COALESCE(NULLIF(t.args, ''), '[]') AS args,
        COALESCE(NULLIF(t.kwargs, ''), '{{}}') AS kwargs,
        CASE WHEN y.spread <> interval '0'
            OR octet_length(t.args) + octet_length(t.kwargs) > 10000 THEN t.id END AS alone,
        p.next_due_at, p.needs_plan, t.one_off, t.task, COALESCE(t.headers, '') AS headers,
        t.queue, t.exchange, t.routing_key, t.priority, t.expire_seconds, t.start_time, t.expires,
        t.crontab_id, t.interval_id, t.clocked_id, t.solar_id,
        CASE WHEN p.needs_plan OR t.interval_id IS NOT NULL THEN p.anchor_at END AS anchor_at,
        CASE WHEN p.needs_plan THEN p.last_due_at END AS last_due_at,
        CASE WHEN p.needs_plan THEN p.rule ELSE '' END AS rule,
        CASE WHEN p.needs_plan THEN LEAST(p.replaced_at, p.plan_from) END AS replaced_at,
        COALESCE(y.catch_up, 'latest') AS catch_up, y.calendar_id, y.excluded_day,
        {bounded("y.catch_up_window")} AS catch_up_window, COALESCE(y.overlap, 'allow') AS overlap,
        COALESCE({bounded("y.spread")}, interval '0') AS spread,
        {bounded("y.deadline_after")} AS deadline_after
      FROM due p
      JOIN django_celery_beat_periodictask t ON t.id = p.schedule_id
      LEFT JOIN scheduling_policy y ON y.schedule_id = p.schedule_id),
alike AS (
    SELECT array_agg(id) AS ids, array_agg(args) AS args, array_agg(kwargs) AS kwargs,
        {", ".join(ALIKE_IN)}
      FROM plans GROUP BY {", ".join(ALIKE_IN)})
SELECT t.ids, t.args, t.kwargs, {DUE_COLUMNS}, {RULE_COLUMNS}
  FROM alike t
  CROSS JOIN LATERAL (SELECT t.calendar_id, t.excluded_day) AS y
  {RULE_JOINS}
 ORDER BY t.next_due_at
"""  # noqa: S608 (constants only)

LOCK_NEWEST = LOCK_DUE.replace("ORDER BY next_due_at LIMIT", "ORDER BY next_due_at DESC LIMIT")


def lock_due(low: datetime, limit: int, *, newest: bool = False) -> Sequence[Alike]:
    """Lock up to `limit` due plans whose instant is after `low`; return them grouped.

    The plans with the oldest instants come first, or with the newest.
    """
    rows = run_prepared(LOCK_NEWEST if newest else LOCK_DUE, {"low": low, "limit": limit})
    plans = with_fields(Due, [tuple(columns) for _, _, _, *columns in rows])
    lists = (row[:3] for row in rows)
    return [Alike(plan, *three) for plan, three in zip(plans, lists, strict=True)]
