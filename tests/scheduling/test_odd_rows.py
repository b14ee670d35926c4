"""Rows that raw SQL or older software has stored break no page and no command.

Every column of every table is given values that Postgres takes and nothing was made for. Then all
pages of the admin and the commands then show the rows.
"""

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, date, datetime
from itertools import cycle, islice
from typing import Any

import pytest
from django.db import DatabaseError, connection, models, transaction
from django.test import Client
from django.urls import NoReverseMatch, reverse
from django_celery_beat.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    SolarSchedule,
)
from django_celery_results.models import TaskResult

from notifications.models import Delivery, LifecycleId, Reminder
from scheduling.ids import uuid7
from scheduling.models import (
    Backfill,
    Calendar,
    ExcludedDate,
    Failure,
    FailureGroup,
    Heartbeat,
    Plan,
    Policy,
    Run,
    Schedule,
    State,
)
from scheduling.schedules import planning
from tests.scheduling.commands import called
from tests.scheduling.ledger import crontab, interval, run, schedule

pytestmark = pytest.mark.django_db

# By the type of a column in Postgres, as texts that it can be cast from.
TEXTS = ["", "Asia/Hanoi", "<b>\u202e\x01\n", "-1", "[1,", '{"a": [5]}', "[" * 9999,
         '[{"__type__": "decimal", "__value__": "x"}]']  # fmt: skip
INSTANTS = ["infinity", "0001-01-01 00:00:00+14"]
NUMBERS = ["-1", "32767", "2147483647", "9223372036854775807"]
ODD: Mapping[str, list[str | None]] = {
    "integer": [None, *NUMBERS],
    "smallint": [None, *NUMBERS],
    "bigint": [None, *NUMBERS],
    "numeric": [None, "NaN", "-999.999999", "0"],
    "boolean": [None, "true", "false"],
    "timestamp with time zone": [None, *INSTANTS],
    "date": [None, "infinity", "-infinity", "0001-01-01", "5874897-01-01", "0044-03-15 BC"],
    "interval": [None, "100000 years", "-178000000 years", "-1 day", "1 mon -1 us", "infinity"],
    "jsonb": [None, "null", "5", '"x"', "{}", "[5]", '[{"error": 5}]', '[{"attempt": [null]}]'],
    "uuid": [None, "00000000-0000-0000-0000-000000000000", "ffffffff-ffff-ffff-ffff-ffffffffffff"],
    "ARRAY": [None, "{}", "{NULL}", "{{1,2},{3,4}}", "{6,6}"],
}


def columns_of(model: type[models.Model]) -> list[tuple[str, str]]:
    """Return the columns of a model's table without its key, with their types in Postgres."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = %s",
            [model._meta.db_table],
        )
        key = model._meta.pk.column if model._meta.pk else ""
        return [(name, kind) for name, kind in cursor.fetchall() if name != key]


def spoilt(model: type[models.Model], make: Callable[[str], models.Model]) -> Iterator[Any]:
    """Write a row for each column and odd value that Postgres lets in; yield them, as made."""
    texts = cycle(TEXTS)
    for column, kind in columns_of(model):
        odd = [None, *islice(texts, 3)] if kind in ("character varying", "text") else ODD[kind]
        for number, value in enumerate(odd):
            try:
                with transaction.atomic():
                    row = make(f"{column} {number}")
                    update_raw(model, row.pk, column, value)
                    connection.check_constraints()
            except DatabaseError:
                continue
            yield row


def update_raw(model: type[models.Model], pk: Any, column: str, value: str | None) -> None:
    table, key = model._meta.db_table, model._meta.pk.column
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT format_type(atttypid, atttypmod) FROM pg_attribute"
            " WHERE attrelid = %s::regclass AND attname = %s", [table, column],
        )  # fmt: skip
        (kind,) = cursor.fetchone()
        update = f'UPDATE {table} SET "{column}" = %s::{kind} WHERE {key} = %s'  # noqa: S608
        cursor.execute(update, [value, pk])


def rule(name: str, **columns: Any) -> PeriodicTask:
    return schedule(name, **columns)


def make_policy(name: str) -> Policy:
    row = schedule(name)
    calendar = Calendar.objects.create(name=f"of {name}", weekdays=[5], country="DE")
    return Policy.objects.create(schedule=row, calendar=calendar, paused_at=None)


def make_plan(name: str) -> Plan:
    return Plan.objects.get(schedule=schedule(name))


def make_calendar(name: str) -> Calendar:
    calendar = Calendar.objects.create(name=name, country="DE", weekdays=[5])
    schedule(name, policy={"calendar": calendar})
    return calendar


def make_date(name: str) -> ExcludedDate:
    return ExcludedDate.objects.create(calendar=make_calendar(name), date=date(2027, 1, 1))


def make_rule(kind: str, make: Callable[[], models.Model]) -> Callable[[str], models.Model]:
    def made(name: str) -> models.Model:
        row = make()
        columns: dict[str, Any] = {kind: row, "one_off": kind == "clocked"}
        schedule(name, **columns)
        return row

    return made


NOW = datetime(2027, 1, 1, tzinfo=UTC)


def make_group(name: str) -> FailureGroup:
    return FailureGroup.objects.create(
        id=uuid7(), task="t", exception="E", place=name, first_seen_at=NOW, last_seen_at=NOW,
        last_error="x", last_run_id=run(State.FAILED).pk, count=1,
    )  # fmt: skip


def make_delivery(name: str) -> Delivery:
    reminder, _ = Reminder.objects.get_or_create(days_before=60)
    return Delivery.objects.create(
        record=make_lcid(name), reminder=reminder, expires_on=date(2027, 1, 1),
        recipient="a@example.org", run_id=run().pk,
    )  # fmt: skip


def make_lcid(name: str) -> LifecycleId:
    return LifecycleId.objects.create(
        lcid=name, name="x", expires_on=date(2027, 1, 1), requester_email="a@example.org"
    )


TABLES: list[tuple[type[models.Model], Callable[[str], models.Model]]] = [
    (PeriodicTask, lambda name: schedule(name)),
    (CrontabSchedule, make_rule("crontab", lambda: crontab("0", "5"))),
    (IntervalSchedule, make_rule("interval", lambda: interval(5))),
    (
        ClockedSchedule,
        make_rule("clocked", lambda: ClockedSchedule.objects.create(clocked_time=NOW)),
    ),
    (
        SolarSchedule,
        make_rule(
            "solar",
            lambda: SolarSchedule.objects.create(
                event="sunset", latitude=SolarSchedule.objects.count() / 100, longitude=1
            ),
        ),
    ),
    (Policy, make_policy),
    (Plan, make_plan),
    (Calendar, make_calendar),
    (ExcludedDate, make_date),
    (Run, lambda name: run(State.FAILED, schedule_name=name, errors=[{"attempt": 1}])),
    (Backfill, lambda name: Backfill.objects.create(schedule_id=1, schedule_name=name, since=NOW,
                                                    until=NOW, run_count=1)),
    (Failure, lambda name: Failure.objects.create(run_id=uuid7(), schedule_name=name, task="t",
                                                  exception="E", place="p", error="x",
                                                  noted_at=NOW)),
    (FailureGroup, make_group),
    (Heartbeat, lambda name: Heartbeat.objects.create(name=name, service="beat", host="h", pid=1,
                                                      version="1", started_at=NOW, seen_at=NOW,
                                                      doing="x")),
    (TaskResult, lambda name: TaskResult.objects.create(task_id=name, status="SUCCESS", result="1",
                                                        content_type="application/json",
                                                        content_encoding="utf-8")),
    (LifecycleId, make_lcid),
    (Reminder, lambda name: Reminder.objects.create(days_before=Reminder.objects.count() + 100)),
    (Delivery, make_delivery),
]  # fmt: skip


class Faces:
    """Shows rows on pages and in commands, and remembers failures."""

    def __init__(self, client: Client) -> None:
        self.client, self.broken = client, list[str]()
        client.raise_request_exception = False

    def page(self, what: str, address: str) -> None:
        with transaction.atomic():
            answer = self.client.get(address, follow=True)
            transaction.set_rollback(True)
        if answer.status_code not in (200, 403):
            error = getattr(answer, "exc_info", None)
            self.broken.append(
                f"{what}: GET {address}: {answer.status_code} {error and error[1]!r}"
            )

    def pages(self, what: str, row: models.Model) -> None:
        if (name := admin_of(type(row))) is not None:
            for page in ("change", "delete"):
                self.page(what, reverse(f"admin:{name}_{page}", args=[row.pk]))

    def command(self, what: str, *words: str) -> None:
        try:
            with transaction.atomic():
                answer = called(*words)
                transaction.set_rollback(True)
            if answer.code and ("Traceback" in answer.err or len(answer.err.splitlines()) > 1):
                self.broken.append(f"{what}: {' '.join(words)}: {answer.err}")
        except Exception as error:
            self.broken.append(f"{what}: {' '.join(words)}: {error!r}")


def admin_of(model: type[models.Model]) -> str | None:
    name = f"{model._meta.app_label}_{model._meta.model_name}"
    try:
        reverse(f"admin:{name}_changelist")
    except NoReverseMatch:
        return None
    return name


def schedule_of(row: Any) -> PeriodicTask | None:
    if isinstance(row, PeriodicTask):
        return row
    if isinstance(row, Policy | Plan):
        return PeriodicTask(pk=row.schedule_id)
    if isinstance(row, Calendar):
        return PeriodicTask(pk=Policy.objects.get(calendar=row).schedule_id)
    if isinstance(row, ExcludedDate):
        return PeriodicTask(pk=Policy.objects.get(calendar=row.calendar_id).schedule_id)
    for kind in ("crontab", "interval", "clocked", "solar"):
        if type(row).__name__.lower().startswith(kind):
            return PeriodicTask(
                pk=PeriodicTask.objects.filter(**{kind: row.pk}).values_list("pk")[0][0]
            )
    return None


@pytest.mark.parametrize(("model", "make"), TABLES, ids=[model.__name__ for model, _ in TABLES])
def test_no_stored_value_takes_a_page_or_a_command_down(
    admin_client: Client, model: type[models.Model], make: Callable[[str], models.Model]
) -> None:
    faces = Faces(admin_client)
    rows = list(spoilt(model, make))
    assert rows
    for row in rows:
        what = f"{model.__name__} {row.pk}"
        if model is not PeriodicTask:  # whose pages are the schedules'
            faces.pages(what, row)
        if (owner := schedule_of(row)) is not None:
            name = PeriodicTask.objects.filter(pk=owner.pk).values_list("name", flat=True)[0]
            what = f"{what} ({name})"
            faces.page(what, reverse("admin:scheduling_schedule_change", args=[owner.pk]))
            for words in COMMANDS if model in RULES else COMMANDS[:2]:
                faces.command(what, "schedule", words[0], *words[1:], "--", name)
        if isinstance(row, Run):
            faces.command(what, "run", "show", str(row.pk))
    for listed in {model, Schedule, Calendar}:
        if (name := admin_of(listed)) is not None:
            faces.page(model.__name__, reverse(f"admin:{name}_changelist"))
    for words in LISTS:
        faces.command(model.__name__, *words)
    assert not faces.broken, "\n".join([str(len(faces.broken)), *faces.broken[:60]])


def hanoi() -> PeriodicTask:
    """Write a schedule in a time zone that one release of the time zone data had."""
    row = schedule("hanoi", crontab=crontab("0", "5"))
    update_raw(CrontabSchedule, row.crontab_id, "timezone", "Asia/Hanoi")
    return row


def test_a_schedule_in_a_zone_that_is_not_known_is_shown_as_broken(admin_client: Client) -> None:
    row = hanoi()
    planning.plan_changed()
    assert "'Asia/Hanoi' is not a time zone" in called("schedule", "list").out
    page = admin_client.get(reverse("admin:scheduling_schedule_changelist")).content.decode()
    assert "in quarantine" in page
    form = reverse("admin:django_celery_beat_crontabschedule_change", args=[row.crontab_id])
    assert "Asia/Hanoi (not known here)" in admin_client.get(form).content.decode()


def test_it_is_mended_by_an_edit(admin_client: Client) -> None:
    row = hanoi()
    answer = called("schedule", "edit", "hanoi", "--timezone", "Asia/Ho_Chi_Minh")
    assert "Asia/Hanoi" in answer.out
    planning.plan_changed()
    assert Plan.objects.get(schedule=row).error == ""


def test_it_is_removed(admin_client: Client) -> None:
    hanoi()
    assert called("schedule", "remove", "hanoi").code == 0
    assert not Schedule.objects.filter(name="hanoi").exists()


RULES = (CrontabSchedule, IntervalSchedule, ClockedSchedule, SolarSchedule)
COMMANDS = [
    ("show",), ("next",), ("edit", "--cron", "0 5 * * *", "--timezone", "UTC"),
    ("pause",), ("resume",),
    ("backfill", "--dry-run", "--from", "2026-01-01T00:00Z", "--to", "2026-01-02T00:00Z"),
    ("remove",),
]  # fmt: skip
LISTS = [
    ("schedule", "list"), ("schedule", "list", "--json"), ("schedule", "audit", "--all"),
    ("schedule", "sync"), ("run", "list"), ("run", "list", "--json"), ("calendar", "list"),
    ("calendar", "list", "--json"), ("failures", "list"), ("failures", "list", "--json"),
    ("backfill", "list"), ("backfill", "list", "--json"), ("health",),
]  # fmt: skip
