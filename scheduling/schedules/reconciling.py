"""reconcile: finds rows that a trigger should have written, and repairs them.

Plans follow schedules by SQL triggers, and go with them by foreign keys, which are triggers too. No
trigger acts if `session_replication_role` is `replica` (logical replication, some restores), or
if it is disabled (`pg_restore --disable-triggers`, `ALTER TABLE ... DISABLE TRIGGER`). So a beat
compares the tables at its start and once a day, and `migrate` does at its end.

The triggers are not declared ENABLE ALWAYS: if plans are replicated too, the rows of a trigger
would collide with replicated rows.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from django.db import connection, transaction

from scheduling.logs import event
from scheduling.postgres.infinity import saturated
from scheduling.schedules import calendars, upgrade_check
from scheduling.schedules.rules import CALENDAR, RULE_JOINS

logger = logging.getLogger(__name__)

PAGE = 5000  # rows that one statement compares
COMPARED = 100  # plans that Python computes without a rest
SHOWN = 20  # ids, or removed rows, that a log line names
LOWEST = -(2**31)

# The tables whose triggers keep plans, and calendars, in step.
WATCHED = (
    "django_celery_beat_periodictask",
    "django_celery_beat_crontabschedule",
    "django_celery_beat_intervalschedule",
    "django_celery_beat_clockedschedule",
    "django_celery_beat_solarschedule",
    "scheduling_policy",
    "scheduling_plan",
    "scheduling_calendar",
    "scheduling_excludeddate",
)
TRIGGERS = (
    *(f"scheduling_schedule_{action}" for action in ("inserted", "updated")),
    *(f"scheduling_{rule}_updated" for rule in ("crontab", "interval", "clocked", "solar")),
    *(f"scheduling_policy_{action}" for action in ("inserted", "updated", "deleted")),
    *(f"scheduling_calendar_{action}" for action in ("changing", "changed")),
    *(f"scheduling_dates_{action}" for action in ("inserted", "updated", "deleted")),
)

ASLEEP = """
SELECT 'triggers of ' || c.relname FROM pg_trigger g JOIN pg_class c ON c.oid = g.tgrelid
 WHERE g.tgrelid = ANY (%(tables)s::regclass[]) AND g.tgenabled IN ('D', 'R')
UNION
SELECT t.name FROM unnest(%(triggers)s::text[]) AS t (name)
 WHERE NOT EXISTS (SELECT 1 FROM pg_trigger g WHERE g.tgname = t.name
                      AND g.tgrelid = ANY (%(tables)s::regclass[]))
 ORDER BY 1
"""

UNPLANNED = """
SELECT EXISTS (
    SELECT 1 FROM django_celery_beat_periodictask t
     WHERE NOT EXISTS (SELECT 1 FROM scheduling_plan p WHERE p.schedule_id = t.id))
"""

# A transaction that deletes one of these schedules has its row locked: the row is skipped.
PLAN = """
WITH page AS MATERIALIZED (
    SELECT id FROM django_celery_beat_periodictask
     WHERE id > %(after)s ORDER BY id LIMIT %(limit)s),
bare AS MATERIALIZED (
    SELECT t.id FROM django_celery_beat_periodictask t
     WHERE t.id = ANY (ARRAY(
        SELECT id FROM page
         WHERE NOT EXISTS (SELECT 1 FROM scheduling_plan p WHERE p.schedule_id = page.id)))
       FOR KEY SHARE SKIP LOCKED),
made AS (
    INSERT INTO scheduling_plan (schedule_id, needs_plan, plan_from)
    SELECT id, true, clock_timestamp() FROM bare ON CONFLICT DO NOTHING RETURNING schedule_id)
SELECT (SELECT max(id) FROM page), (SELECT array_agg(schedule_id) FROM made)
"""

# {table} has rows of {parent}, whose id is in {column}; {key} is its primary key.
REMOVE = """
WITH page AS MATERIALIZED (
    SELECT {key} AS key, {column} AS parent FROM {table}
     WHERE {key} > %(after)s ORDER BY {key} LIMIT %(limit)s),
gone AS (
    DELETE FROM {table} o WHERE o.{key} = ANY (ARRAY(
        SELECT key FROM page WHERE NOT EXISTS (SELECT 1 FROM {parent} p WHERE p.id = page.parent)))
    RETURNING to_jsonb(o) AS row)
SELECT (SELECT max(key) FROM page), (SELECT array_agg(row::text) FROM gone)
"""
ORPHANS = {
    "plans": ("scheduling_plan", "schedule_id", "schedule_id", "django_celery_beat_periodictask"),
    "policies": (
        "scheduling_policy", "schedule_id", "schedule_id", "django_celery_beat_periodictask",
    ),
    "dates": ("scheduling_excludeddate", "id", "calendar_id", "scheduling_calendar"),
}  # fmt: skip


def _written(column: str) -> str:
    """Return SQL for an instant as Python's `str` writes it in UTC."""
    value = saturated(column)
    return (
        f"to_char({value} AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') ||"
        f" CASE WHEN date_trunc('second', {value}) = {value} THEN ''"
        f" ELSE to_char({value}, '.US') END || '+00:00'"
    )


# RuleFields.fingerprint, in SQL: `d` has the fingerprints of the calendars' days off.
FINGERPRINT = f"""
concat_ws('|', COALESCE(c.minute, ''), COALESCE(c.hour, ''), COALESCE(c.day_of_month, ''),
    COALESCE(c.month_of_year, ''), COALESCE(c.day_of_week, ''), COALESCE(c.timezone, ''),
    COALESCE(i.every::text, ''), COALESCE(i.period, ''),
    COALESCE({_written("k.clocked_time")}, ''), COALESCE(s.event, ''),
    COALESCE(s.latitude::text, ''), COALESCE(s.longitude::text, ''),
    COALESCE({_written("t.start_time")}, ''))
    || CASE WHEN d.fingerprint IS NULL THEN ''
       ELSE '{CALENDAR}' || d.fingerprint || ' ' || y.excluded_day END
"""

# Plans that might differ from their schedule; `planning.plan` then says whether they are.
# Plans that are asked for, and due plans, are computed anew in a moment in any case. A
# pause that has ended unnoticed shows in an instant that is too far away: after a day, unless the
# rule itself is that rare.
SUSPECTS = f"""
SELECT p.schedule_id, y.calendar_id
  FROM scheduling_plan p
  JOIN django_celery_beat_periodictask t ON t.id = p.schedule_id
  LEFT JOIN scheduling_policy y
    ON y.schedule_id = p.schedule_id AND y.schedule_id BETWEEN %(first)s AND %(last)s
  LEFT JOIN unnest(%(calendars)s::bigint[], %(days_off)s::text[]) AS d (id, fingerprint)
    ON d.id = y.calendar_id
  {RULE_JOINS}
 WHERE p.schedule_id BETWEEN %(first)s AND %(last)s AND t.id BETWEEN %(first)s AND %(last)s
   AND NOT p.needs_plan AND (p.next_due_at IS NULL OR p.next_due_at > statement_timestamp())
   AND (p.rule <> {FINGERPRINT}
        OR (t.enabled AND NOT p.done AND (y.paused_at IS NULL OR y.paused_until IS NOT NULL))
           IS DISTINCT FROM (p.next_due_at IS NOT NULL)
        OR p.error <> ''
        OR p.next_due_at > t.expires
        OR p.next_due_at < y.paused_until
        OR p.next_due_at > GREATEST(p.plan_from, p.last_due_at) + interval '25 hours')
"""  # noqa: S608 (constants only)

# Bounds for both sides of the join: else each page would read the whole table of schedules.
NEXT_PAGE = """
SELECT min(schedule_id), max(schedule_id) FROM (
    SELECT schedule_id FROM scheduling_plan
     WHERE schedule_id > %(after)s ORDER BY schedule_id LIMIT %(limit)s) AS page
"""

# As the calendar's own triggers would: other processes read the calendar again.
TOUCH = "SELECT scheduling_touch_calendars(%s::bigint[])"


Rest = Callable[[], None]


def no_rest() -> None:
    """Go on at once: nothing else waits for this process."""


def reconcile(rest: Rest = no_rest) -> Counter[str]:
    """Make missing plans, ask for outdated ones, and remove rows without an owner.

    It reads every schedule and every plan, in pages: seconds for a million. Beat's ticks never wait
    for it.

    Args:
        rest: is called between short pieces of work.

    Returns:
        How many `planned`, `asked`, `plans`, `policies` and `dates` (the last three removed); and
        `asleep`, the triggers that are missing or do not act.
    """
    found = Counter[str](planned=plan_missing(rest=rest), asleep=len(asleep()))
    found.update({what: remove_orphans(what, rest=rest) for what in ORPHANS})
    found["asked"] = ask_where_overlooked(rest=rest)
    if found["asleep"]:
        event(logger, "triggers_asleep", level=logging.ERROR, triggers=", ".join(asleep()))
    return +found


def in_words(found: Mapping[str, int]) -> str:
    """Return the findings of `reconcile` as lines for people."""
    words = {
        "planned": "schedules had no plan: they are planned now",
        "asked": "plans did not match their schedules: they are planned anew",
        "plans": "plans had no schedule: removed",
        "policies": "policies had no schedule: removed (the log has them)",
        "dates": "dates off had no calendar: removed (the log has them)",
        "asleep": "triggers are missing or do not act: see `manage.py check --database default`",
    }
    return "\n".join(f"{count} {words[what]}." for what, count in found.items())


def asleep() -> list[str]:
    """Return which triggers do not act, by their tables, and which are missing, by their names."""
    with connection.cursor() as cursor:
        cursor.execute(ASLEEP, {"tables": list(WATCHED), "triggers": list(TRIGGERS)})
        return [name for (name,) in cursor.fetchall()]


def has_unplanned() -> bool:
    """Return whether there is a schedule without a plan; 0.4 s for a million that have one."""
    with connection.cursor() as cursor:
        cursor.execute(UNPLANNED)
        return bool(cursor.fetchone()[0])


def plan_missing(limit: int = PAGE, rest: Rest = no_rest) -> int:
    """Make the missing plans of schedules, counted from now; return how many."""
    made = [schedule for page in _pages(PLAN, limit, rest) for schedule in page]
    if made:
        event(logger, "plans_missing", level=logging.WARNING, plans=len(made),
              schedules=_shown(made))  # fmt: skip
    return len(made)


def remove_orphans(what: str, limit: int = PAGE, rest: Rest = no_rest) -> int:
    """Remove `plans`, `policies` or `dates` whose schedule or calendar is gone; return how many."""
    table, key, column, parent = ORPHANS[what]
    statement = REMOVE.format(table=table, key=key, column=column, parent=parent)
    removed = [row for page in _pages(statement, limit, rest) for row in page]
    if removed:  # the log keeps the users' values
        event(logger, "orphans_removed", level=logging.WARNING, table=table, rows=len(removed),
              removed=_shown(removed))  # fmt: skip
    return len(removed)


def _pages(statement: str, limit: int, rest: Rest) -> Iterator[list[Any]]:
    after: int | None = LOWEST
    while after is not None:
        with connection.cursor() as cursor:
            cursor.execute(statement, {"after": after, "limit": limit})
            after, found = cursor.fetchone()
        yield found or []
        rest()


def ask_where_overlooked(limit: int = PAGE, rest: Rest = no_rest) -> int:
    """Ask for plans that do not match their schedules; return how many."""
    calendars.forget()  # their versions do not show an edit that no trigger saw
    days_off = calendars.days_off_of_all()
    parameters: dict[str, Any] = {
        "calendars": list(days_off),
        "days_off": [days.fingerprint for days in days_off.values()],
    }
    asked, after = list[int](), LOWEST
    while True:
        with connection.cursor() as cursor:
            cursor.execute(NEXT_PAGE, {"after": after, "limit": limit})
            first, last = cursor.fetchone()
            if last is None:
                break
            cursor.execute(SUSPECTS, {**parameters, "first": first, "last": last})
            suspects = cursor.fetchall()
        rest()
        for start in range(0, len(suspects), COMPARED):
            asked += _ask(dict(suspects[start : start + COMPARED]))
            rest()
        after = last
    if asked:
        event(logger, "plans_overlooked", level=logging.WARNING, plans=len(asked),
              schedules=_shown(asked))  # fmt: skip
    return len(asked)


def _ask(suspects: Mapping[int, int | None]) -> list[int]:
    """Ask for the plans of those suspects that would be planned otherwise now; return them.

    Args:
        suspects: schedules, with the calendars that they follow.
    """
    found = [one for one in upgrade_check.compared(list(suspects)) if one.edited]
    touched = {suspects[one.schedule_id] for one in found if one.days_off_edited} - {None}
    asked = [one.schedule_id for one in found]
    if asked:
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute(TOUCH, [list(touched)])
            cursor.execute(upgrade_check.ASK, [asked])
    return asked


def _shown(values: Sequence[object]) -> str:
    more = f" and {len(values) - SHOWN:,} more" if len(values) > SHOWN else ""
    return ", ".join(map(str, values[:SHOWN])) + more
