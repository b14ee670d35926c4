"""Rows of the ledger for tests, and a second connection to it."""

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import psycopg
from django.db import connection
from django_celery_beat.models import CrontabSchedule, IntervalSchedule, PeriodicTask

from scheduling.ids import uuid7
from scheduling.models import FINAL, Origin, Plan, Policy, Run, State

T = TypeVar("T")

ADD = "tests.jobs.tasks.add"
WRITE = "tests.jobs.tasks.write"
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)
NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
YEAR = datetime.now(UTC).year + 2  # one to come, of the ten that a new rule must fire in


def crontab(minute: str = "*", hour: str = "*", **fields: str) -> CrontabSchedule:
    row: CrontabSchedule = CrontabSchedule.objects.create(minute=minute, hour=hour, **fields)
    return row


def far_off() -> CrontabSchedule:
    """Write a rule that cannot come due while a test runs: once a year, half a year from now."""
    month = (datetime.now(UTC).month + 5) % 12 + 1
    return crontab("0", "0", day_of_month="1", month_of_year=str(month))


def interval(every: int, period: str = "minutes") -> IntervalSchedule:
    row: IntervalSchedule = IntervalSchedule.objects.create(every=every, period=period)
    return row


def schedule(
    name: str = "nightly", *, task: str = ADD, policy: dict[str, Any] | None = None, **columns: Any
) -> PeriodicTask:
    """Write a schedule; it comes due in half a year, unless `columns` hold another rule."""
    if not columns.keys() & {"crontab", "interval", "clocked", "solar"}:
        columns["crontab"] = far_off()
    columns = {"args": "[1, 2]", **columns}
    row: PeriodicTask = PeriodicTask.objects.create(name=name, task=task, **columns)
    if policy is not None:
        Policy.objects.create(schedule=row, **policy)
    return row


def plan_of(row: PeriodicTask) -> Plan:
    return Plan.objects.get(schedule=row)


def set_plan(row: PeriodicTask, next_due_at: datetime | None, **columns: Any) -> None:
    """Write a plan as if beat had made it."""
    columns = {"needs_plan": False, "plan_from": LONG_AGO, **columns}
    Plan.objects.filter(schedule=row).update(next_due_at=next_due_at, **columns)


def run(state: State = State.SCHEDULED, **columns: Any) -> Run:
    """Write a run that may start; a queued or running one looks as the engine would leave it."""
    now = datetime.now(UTC)
    defaults: dict[str, Any] = {
        "id": uuid7(), "task": ADD, "args": "[1, 2]", "queue": "celery", "origin": Origin.ADHOC,
        "due_at": now - timedelta(minutes=1), "run_at": now - timedelta(minutes=1),
    }  # fmt: skip
    if state == State.QUEUED:
        defaults["queued_at"] = now
    if state == State.RUNNING:
        defaults |= {
            "worker": "w1", "started_at": now, "lease_expires_at": now + timedelta(seconds=30)
        }  # fmt: skip
    if state in FINAL:
        defaults["finished_at"] = now
    return Run.objects.create(state=state, **{**defaults, **columns})


def write_successes(
    task: str,
    count: int,
    *,
    origin: Origin = Origin.ADHOC,
    at: datetime | None = None,
    expires_at: datetime | None = None,
) -> None:
    """Write runs that succeeded `at` an instant, by default now, and update the statistics."""
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO scheduling_run (id, origin, task, queue, due_at, run_at, state,"
            " finished_at, expires_at, backfill_id)"
            " SELECT gen_random_uuid(), %(origin)s::text, %(task)s, 'q', at, at, 'succeeded', at,"
            " %(expires_at)s::timestamptz,"
            " CASE WHEN %(origin)s::text = 'backfill' THEN gen_random_uuid() END"
            " FROM (SELECT coalesce(%(at)s::timestamptz, now()) AS at) AS moment,"
            " generate_series(1, %(count)s)",
            {"task": task, "count": count, "origin": str(origin), "at": at,
             "expires_at": expires_at},
        )  # fmt: skip
        cursor.execute("ANALYZE scheduling_run")


def plans_of(queries: Iterable[dict[str, Any]], table: str) -> str:
    """Return how Postgres would go about those of `queries` that read `table`."""
    lines: list[str] = []
    with connection.cursor() as cursor:
        for query in queries:
            if f'FROM "{table}"' in query["sql"]:
                cursor.execute(f"EXPLAIN {query['sql']}")
                lines += [line for (line,) in cursor.fetchall()]
    return "\n".join(lines)


def runs_of(row: PeriodicTask) -> list[Run]:
    return list(Run.objects.filter(schedule_id=row.pk).order_by("due_at", "id"))


@contextmanager
def second_connection() -> Iterator[psycopg.Connection[Any]]:
    """Another client of the test's database, with a transaction open from its first statement."""
    parameters = connection.get_connection_params()
    names = ("host", "port", "user", "password", "dbname")
    known = {name: parameters[name] for name in names if parameters.get(name)}
    with psycopg.connect(**known) as other:
        yield other
        other.rollback()


@contextmanager
def no_triggers() -> Iterator[None]:
    """Write as replication and `pg_restore --disable-triggers` do."""
    with connection.cursor() as cursor:
        cursor.execute("SET session_replication_role = replica")
        try:
            yield
        finally:
            cursor.execute("SET session_replication_role = origin")


def in_thread(act: Callable[[], T]) -> "Future[T]":
    """Call `act` in a thread, on a database connection of its own."""
    future: Future[T] = Future()

    def work() -> None:
        try:
            future.set_result(act())
        except BaseException as error:
            future.set_exception(error)
        finally:
            connection.close()

    threading.Thread(target=work, daemon=True).start()
    return future


def is_blocked() -> bool:
    """Return whether a client of this database waits for a lock."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted)")
        return bool(cursor.fetchone()[0])


def sessions_blocked() -> int:
    """Return how many clients of this database wait for a lock."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
            " AND datname = current_database()"
        )
        return int(cursor.fetchone()[0])
