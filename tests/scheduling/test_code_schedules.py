from datetime import timedelta
from typing import Any

import pytest
from celery import schedules
from django.core.management import call_command
from django_celery_beat.models import CrontabSchedule, PeriodicTask
from pytest_django import Settings

from scheduling import planning
from scheduling.code_schedules import sync
from scheduling.errors import ScheduleError
from scheduling.models import ManagedBy, Policy
from tests.scheduling.ledger import ADD, plan_of, schedule, set_plan

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _nothing_in_code(settings: Settings) -> None:
    settings.CELERY_BEAT_SCHEDULE = {}
    sync()


def entry(settings: Settings, name: str = "from code", **columns: Any) -> list[str]:
    values = {"task": ADD, "schedule": 60.0, **columns}
    settings.CELERY_BEAT_SCHEDULE = {name: {k: v for k, v in values.items() if v is not None}}
    return sync()


def row(name: str = "from code") -> PeriodicTask:
    return PeriodicTask.objects.get(name=name)


def test_an_entry_becomes_a_schedule_that_belongs_to_code(settings: Settings) -> None:
    lines = entry(
        settings, args=(1, 2), kwargs={"a": 1},
        options={"queue": "q", "priority": 3, "headers": {"t": 1}, "expires": 60},
    )  # fmt: skip
    made = row()
    assert lines == ["+ from code"]
    assert (made.task, made.args, made.kwargs, made.queue, made.priority) == (
        ADD, "[1, 2]", '{"a": 1}', "q", 3,
    )  # fmt: skip
    assert (made.headers, made.expire_seconds) == ('{"t": 1}', 60)
    assert Policy.objects.get(schedule=made).managed_by == ManagedBy.CODE
    assert plan_of(made).needs_plan


def test_syncing_again_changes_nothing_and_asks_for_no_plan(settings: Settings) -> None:
    entry(settings)
    set_plan(row(), None)
    assert sync() == []
    assert not plan_of(row()).needs_plan


def test_an_edit_in_code_is_followed(settings: Settings) -> None:
    entry(settings)
    set_plan(row(), None)
    assert entry(settings, schedule=schedules.crontab(hour=6, minute=0)) == [
        "~ from code: crontab_id, interval_id"
    ]
    made = row()
    assert (made.interval, made.crontab.hour) == (None, "6")
    assert plan_of(made).needs_plan


def test_an_entry_that_went_takes_its_schedule_with_it(settings: Settings) -> None:
    entry(settings)
    users = schedule("a user's")
    settings.CELERY_BEAT_SCHEDULE = {}
    assert sync() == ["- from code"]
    assert PeriodicTask.objects.filter(pk=users.pk).exists()


def test_what_an_admin_disabled_or_paused_stays_so(settings: Settings) -> None:
    entry(settings)
    PeriodicTask.objects.update(enabled=False)
    entry(settings, args=(3, 4))
    assert not row().enabled


def test_a_users_schedule_of_the_same_name_is_never_touched(settings: Settings) -> None:
    schedule("from code")
    with pytest.raises(ScheduleError, match="so has a user's schedule"):
        entry(settings, args=(9, 9))
    assert row().args == "[1, 2]"


def test_one_entry_that_cannot_be_read_changes_nothing(settings: Settings) -> None:
    settings.CELERY_BEAT_SCHEDULE = {
        "a good one": {"task": ADD, "schedule": 60},
        "the bad one": {"task": ADD, "schedule": "hourly"},
    }
    with pytest.raises(ScheduleError, match="the bad one"):
        sync()
    assert not PeriodicTask.objects.filter(name="a good one").exists()


@pytest.mark.parametrize("missing", ["task", "schedule"])
def test_an_entry_must_be_whole(settings: Settings, missing: str) -> None:
    with pytest.raises(ScheduleError, match=f"has no '{missing}'"):
        entry(settings, "from code", **{missing: None})


@pytest.mark.parametrize(
    ("rule", "shown"),
    [
        (60, "every minute"),
        (1.5, "every 1500000 microseconds"),
        (timedelta(hours=2), "every 2 hours"),
        (schedules.schedule(timedelta(days=1)), "every day"),
        (schedules.crontab(minute="*/5", hour="1, 2"), "*/5 1,2 * * *"),
        (schedules.solar("sunset", 52, 13), "Sunset (52.000000, 13.000000)"),
    ],
)
def test_celerys_kinds_of_rules_are_understood(settings: Settings, rule: Any, shown: str) -> None:
    entry(settings, schedule=rule)
    planning.plan_changed()
    assert str(row().scheduler).startswith(shown)
    assert plan_of(row()).error == ""
    assert plan_of(row()).next_due_at is not None


def test_a_crontab_of_lists_is_understood(settings: Settings) -> None:
    entry(settings, schedule=schedules.crontab(minute=[0, 30]))
    planning.plan_changed()
    assert plan_of(row()).error == ""


@pytest.mark.parametrize("expires", [30.0, timedelta(seconds=30)])
def test_celerys_kinds_of_expiry_are_understood(settings: Settings, expires: Any) -> None:
    entry(settings, options={"expires": expires})
    assert row().expire_seconds == 30


def test_equal_crontabs_are_shared(settings: Settings) -> None:
    rule = schedules.crontab(hour="3", minute="33")
    settings.CELERY_BEAT_SCHEDULE = {
        name: {"task": ADD, "schedule": rule} for name in ("one", "two")
    }
    sync()
    assert CrontabSchedule.objects.filter(hour="3", minute="33").count() == 1


def test_migrate_writes_them(settings: Settings) -> None:
    settings.CELERY_BEAT_SCHEDULE = {"at migrate": {"task": ADD, "schedule": 60}}
    call_command("migrate", verbosity=0)
    assert PeriodicTask.objects.filter(name="at migrate").exists()


@pytest.mark.parametrize(
    "step",
    [timedelta(0), timedelta(seconds=-5), timedelta.max, timedelta(days=5000, microseconds=1)],
)
def test_an_interval_that_cannot_be_stored_is_refused(settings: Settings, step: timedelta) -> None:
    with pytest.raises(ScheduleError):
        entry(settings, schedule=step)
