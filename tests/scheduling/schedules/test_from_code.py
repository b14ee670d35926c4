import io
from calendar import isleap
from datetime import UTC, date, datetime, timedelta
from typing import Any

import pytest
from celery import current_app, schedules
from django.core.management import CommandError, call_command
from django.db import transaction
from django_celery_beat.models import CrontabSchedule, PeriodicTask
from pytest_django import Settings

from scheduling import schedules as schedules_core
from scheduling.errors import ScheduleError
from scheduling.models import Calendar, ManagedBy, Policy
from scheduling.schedules import from_code, planning
from scheduling.schedules.from_code import sync
from scheduling.schedules.policies import POLICIES
from tests.scheduling.ledger import ADD, NOON, in_thread, is_blocked, plan_of, schedule, set_plan
from tests.waiting import wait_for

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
    assert lines == ["+ from code: every minute"]
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


def test_an_entry_says_how_it_is_treated(settings: Settings) -> None:
    Calendar.objects.create(name="office")
    policy = {
        "catch_up": "all", "catch_up_window": 3600, "overlap": "skip", "spread": 1.5,
        "max_attempts": 5, "deadline_after": timedelta(hours=1), "calendar": "office",
        "excluded_day": "next", "pause_after_failures": 3, "owner": "night@example.org",
    }  # fmt: skip
    assert set(policy) == set(POLICIES)
    assert entry(settings, policy=policy) == ["+ from code: every minute"]
    made = Policy.objects.get(schedule=row())
    assert made.managed_by == ManagedBy.CODE
    assert (made.catch_up, made.catch_up_window) == ("all", timedelta(hours=1))
    assert (made.overlap, made.spread) == ("skip", timedelta(seconds=1.5))
    assert (made.max_attempts, made.deadline_after) == (5, timedelta(hours=1))
    assert (str(made.calendar), made.excluded_day) == ("office", "next")
    assert (made.pause_after_failures, made.owner) == (3, "night@example.org")
    assert sync() == []


def test_a_policy_that_code_takes_back_has_its_default_again(settings: Settings) -> None:
    entry(settings, policy={"overlap": "skip", "spread": 60, "owner": "night@example.org"})
    schedules_core.pause(row(), by="ann", reason="freeze")
    assert entry(settings, policy={"owner": "day@example.org"}) == [
        "~ from code: policy overlap: skip -> allow;"
        " policy owner: night@example.org -> day@example.org; policy spread: 0:01:00 -> 0:00:00"
    ]
    made = Policy.objects.get(schedule=row())
    assert (made.overlap, made.spread, made.owner) == ("allow", timedelta(0), "day@example.org")
    assert (made.pause_reason, made.managed_by) == ("freeze", ManagedBy.CODE)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"overlaps": "skip"}, "policy: 'overlaps' is no policy: did you mean 'overlap'"),
        ({"managed_by": "user"}, "'managed_by' is no policy"),
        ({"overlap": "both"}, "policy: overlap: .*'both' is not a valid choice"),
        ({"spread": -1}, "policy: spread: .*greater than or equal to"),
        ({"spread": "soon"}, "policy: spread: .*soon"),
        ({"spread": float("nan")}, "nan is not a length of time"),
        ({"spread": 1e300}, "is not a length of time"),
        ({"spread": timedelta.max}, "policy: spread: .*less than or equal to"),
        ({"spread": None}, "policy: spread: .*cannot be null"),
        ({"max_attempts": 0}, "max_attempts: .*greater than or equal to 1"),
        ({"max_attempts": 10**9}, "max_attempts: .*less than or equal to 32767"),
        ({"owner": "a\0b"}, "owner: .* is no mail address"),
        ({"owner": "\ud800"}, "owner: .* is no mail address"),
        ({"calendar": "office"}, "there is no calendar 'office'"),
        ("skip", "has the policy 'skip': give a dict"),
    ],
)
def test_a_policy_that_cannot_be_is_refused_by_name(
    settings: Settings, policy: Any, message: str
) -> None:
    with pytest.raises(ScheduleError, match=rf"CELERY_BEAT_SCHEDULE\['from code'\].*{message}"):
        entry(settings, policy=policy)
    assert not PeriodicTask.objects.filter(name="from code").exists()


def test_a_key_that_is_none_of_an_entrys_is_refused(settings: Settings) -> None:
    with pytest.raises(ScheduleError, match=r"'from code'\] has 'polcy', which is none of task"):
        entry(settings, polcy={"overlap": "skip"})


def test_an_edit_in_code_is_followed(settings: Settings) -> None:
    entry(settings)
    set_plan(row(), None)
    assert entry(settings, schedule=schedules.crontab(hour=6, minute=0)) == [
        "~ from code: rule: every minute -> 0 6 * * * (UTC)"
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


def test_celerys_own_clean_up_is_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    cleanup = row("celery.backend_cleanup")
    assert (cleanup.task, cleanup.expire_seconds) == ("celery.backend_cleanup", 12 * 3600)
    assert (cleanup.crontab.minute, cleanup.crontab.hour) == ("0", "4")
    assert Policy.objects.get(schedule=cleanup).managed_by == ManagedBy.CODE
    monkeypatch.setitem(current_app.conf, "result_expires", None)
    assert sync() == ["- celery.backend_cleanup"]


def test_what_an_admin_disabled_or_paused_stays_so(settings: Settings) -> None:
    entry(settings)
    PeriodicTask.objects.update(enabled=False)
    entry(settings, args=(3, 4))
    assert not row().enabled


def test_what_changes_is_said_with_what_was_and_what_is(settings: Settings) -> None:
    entry(settings)
    lines = entry(settings, args=(1, 3), options={"queue": "q"}, policy={"overlap": "skip"})
    assert lines == [
        "~ from code: args: [] -> [1, 3]; queue: none -> q; policy overlap: allow -> skip"
    ]


def rare() -> str:
    """Return a day of the week that no 29 February of the next ten years falls on."""
    year = datetime.now(UTC).year
    taken = {date(y, 2, 29).isoweekday() % 7 for y in range(year, year + 12) if isleap(y)}
    return str(min({*range(7)} - taken))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"schedule": schedules.crontab(0, 0, rare(), 29, 2)}, "does not fire within ten years"),
        ({"schedule": timedelta(days=5000)}, "does not fire within ten years"),
        ({"policy": {"calendar": "Mondays", "excluded_day": "skip"},
          "schedule": schedules.crontab(0, 0, "mon")}, "does not fire within ten years"),
        ({"options": {"priority": 1000}}, "priority: .*less than or equal to 255"),
        ({"options": {"priority": "urgent"}}, "priority: "),
        ({"options": {"queue": "q" * 300}}, "queue: .*at most 200"),
        ({"options": {"queue": "a\0b"}}, "queue: .*no text can hold"),
        ({"options": {"expires": float("inf")}}, "expires=inf"),
        ({"options": {"expires": 10**12}}, "expire_seconds: .*less than or equal to"),
        ({"options": {"headers": [1]}}, "has the headers .1.: give a dict"),
        ({"options": {"time_limit": 30}}, "has the option 'time_limit', which is none of queue"),
        ({"options": [1]}, "has the options .1.: give a dict"),
        ({"args": "ab"}, "has the args 'ab': give a list"),
        ({"args": (object(),)}, "are not JSON"),
        ({"kwargs": [1]}, "has the kwargs .1.: give a dict"),
        ({"policy": {"calendar": 5}}, "there is no calendar '5'"),
        ({"task": "t" * 300}, "task: .*at most 200"),
    ],
)  # fmt: skip
def test_what_could_not_be_kept_or_never_fires_is_refused(
    settings: Settings, columns: dict[str, Any], message: str
) -> None:
    Calendar.objects.create(name="Mondays", weekdays=[0])
    with pytest.raises(ScheduleError, match=rf"CELERY_BEAT_SCHEDULE\['from code'\].*{message}"):
        entry(settings, **columns)
    assert not PeriodicTask.objects.filter(name="from code").exists()
    entry(settings)  # and as an edit
    with pytest.raises(ScheduleError, match=message):
        entry(settings, **columns)
    assert str(row().scheduler) == "every minute"


class Overridden(schedules.crontab):
    """Due by code of its own."""


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        (Overridden(), "one of class Overridden"),
        (schedules.crontab(nowfun=lambda: NOON), "nowfun"),
        (schedules.schedule(3600, relative=True), "relative to the clock"),
        (schedules.crontab(minute=[]), "has 4 fields"),
        (float("nan"), "nan is not a length of time"),
        (float("inf"), "inf is not a length of time"),
        (0, "longer than nothing"),
    ],
)
def test_a_rule_that_a_row_cannot_keep_is_refused(
    settings: Settings, rule: Any, message: str
) -> None:
    with pytest.raises(ScheduleError, match=rf"CELERY_BEAT_SCHEDULE\['from code'\].*{message}"):
        entry(settings, schedule=rule)


def test_an_entry_that_is_relative_to_the_clock_is_refused(settings: Settings) -> None:
    with pytest.raises(ScheduleError, match=r"'from code'\] is relative to the clock"):
        entry(settings, relative=True)
    entry(settings, relative=False)


def test_what_only_a_message_has_makes_no_difference(settings: Settings) -> None:
    entry(settings, options={"routing_key": "a.b", "queue": "q"})
    assert row().queue == "q"


@pytest.mark.parametrize("name", [5, None, "a\0b", "\ud800"])
def test_a_name_that_is_no_text_is_refused(settings: Settings, name: Any) -> None:
    settings.CELERY_BEAT_SCHEDULE = {name: {"task": ADD, "schedule": 60}}
    with pytest.raises(ScheduleError, match=r"has the name .*: give a text"):
        sync()


def test_an_entry_that_is_no_dict_is_refused(settings: Settings) -> None:
    settings.CELERY_BEAT_SCHEDULE = {"from code": 60}
    with pytest.raises(ScheduleError, match=r"'from code'\] is 60: give a dict"):
        sync()


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
    out = io.StringIO()
    call_command("migrate", stdout=out)
    assert PeriodicTask.objects.filter(name="at migrate").exists()
    assert "CELERY_BEAT_SCHEDULE:\n  + at migrate: every minute\n" in out.getvalue()
    out = io.StringIO()
    call_command("migrate", stdout=out)
    assert "CELERY_BEAT_SCHEDULE" not in out.getvalue()


def test_migrate_says_in_a_line_that_a_name_is_taken(settings: Settings) -> None:
    schedule("taken")
    settings.CELERY_BEAT_SCHEDULE = {"taken": {"task": ADD, "schedule": 60}}
    with pytest.raises(CommandError, match="an entry 'taken', and so has a user's schedule"):
        call_command("migrate", verbosity=0)


@pytest.mark.django_db(transaction=True)
def test_the_second_of_two_deploys_at_once_sees_what_the_first_wrote(settings: Settings) -> None:
    settings.CELERY_BEAT_SCHEDULE = {"nightly": {"task": ADD, "schedule": 60}}
    with transaction.atomic():
        assert sync() == ["+ nightly: every minute"]
        second = in_thread(sync)
        assert wait_for(lambda: second.done() or is_blocked())
    assert second.result(5) == []


@pytest.mark.django_db(transaction=True)
def test_a_name_that_a_user_takes_at_that_very_moment_is_refused(settings: Settings) -> None:
    settings.CELERY_BEAT_SCHEDULE = {"nightly": {"task": ADD, "schedule": 60}}
    with transaction.atomic():
        schedule("nightly")
        code = in_thread(sync)
        assert wait_for(lambda: code.done() or is_blocked())
    with pytest.raises(ScheduleError, match="has an entry 'nightly', and so has a user's"):
        code.result(5)


@pytest.mark.parametrize(
    "step",
    [timedelta(0), timedelta(seconds=-5), timedelta.max, timedelta(days=5000, microseconds=1)],
)
def test_an_interval_that_cannot_be_stored_is_refused(settings: Settings, step: timedelta) -> None:
    with pytest.raises(ScheduleError):
        entry(settings, schedule=step)


@pytest.mark.django_db(transaction=True)
def test_whoever_edits_a_rule_meanwhile_only_waits(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    Calendar.objects.create(name="Mondays", weekdays=[0])
    rule, write, edits = schedules.crontab("33", "3"), from_code._write, list[Any]()
    first: dict[str, Any] = {"task": ADD, "schedule": rule}
    settings.CELERY_BEAT_SCHEDULE = {"first": first, "second": {"task": ADD, "schedule": 60}}
    sync()
    shared = CrontabSchedule.objects.filter(minute="33", hour="3")

    def write_and_let_edit(name: str, entry: Any) -> str | None:
        line = write(name, entry)
        if name == "first":  # whose plan is locked now
            edits.append(in_thread(lambda: shared.update(minute="34")))
            wait_for(is_blocked)
        return line

    monkeypatch.setattr(from_code, "_write", write_and_let_edit)
    settings.CELERY_BEAT_SCHEDULE = {
        "first": {**first, "policy": {"calendar": "Mondays"}},
        "second": first,
    }
    assert len(sync()) == 2
    assert edits[0].result(5) == 1
