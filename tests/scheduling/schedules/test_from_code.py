import io
from calendar import isleap
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

import pytest
from celery import current_app, schedules
from django.core import checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import transaction
from django_celery_beat.clockedschedule import clocked
from django_celery_beat.models import CrontabSchedule, PeriodicTask
from django_celery_beat.schedulers import DatabaseScheduler
from django_celery_beat.tzcrontab import TzAwareCrontab
from kombu import Exchange, Queue
from pytest_django import Settings

from scheduling import recurrence
from scheduling import schedules as schedules_core
from scheduling.errors import ScheduleError
from scheduling.models import Calendar, ManagedBy, Policy
from scheduling.schedules import from_code, planning
from scheduling.schedules.from_code import sync
from scheduling.schedules.policies import POLICIES
from scheduling.schedules.rules import rule_of
from tests.jobs import tasks
from tests.scheduling.ledger import (
    ADD,
    NOON,
    crontab,
    in_thread,
    interval,
    is_blocked,
    plan_of,
    schedule,
    set_plan,
)
from tests.waiting import wait_for

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _nothing_in_code(settings: Settings) -> None:
    settings.CELERY_BEAT_SCHEDULE = {}
    sync()


def entry(settings: Settings, name: str = "from code", **columns: Any) -> list[str]:
    values = {"task": ADD, "schedule": 60.0, **columns}
    settings.CELERY_BEAT_SCHEDULE = {name: {k: v for k, v in values.items() if v is not None}}
    return sync().lines


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
    assert sync().lines == []
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
    assert sync().lines == []


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
        ({"overlaps": "skip"}, "policy: 'overlaps' is not a policy: did you mean 'overlap'"),
        ({"managed_by": "user"}, "'managed_by' is not a policy"),
        ({"overlap": "both"}, "policy: overlap: .*'both' is not a valid choice"),
        ({"spread": -1}, "policy: spread: .*greater than or equal to"),
        ({"spread": "soon"}, "policy: spread: .*soon"),
        ({"spread": float("nan")}, "nan is not a length of time"),
        ({"spread": 1e300}, "is not a length of time"),
        ({"spread": timedelta.max}, "policy: spread: .*less than or equal to"),
        ({"spread": None}, "policy: spread: .*cannot be null"),
        ({"max_attempts": 0}, "max_attempts: .*greater than or equal to 1"),
        ({"max_attempts": 10**9}, "max_attempts: .*less than or equal to 32767"),
        ({"owner": "a\0b"}, "owner: .* has the invisible character U\\+0000"),
        ({"owner": "\ud800"}, "owner: .* has the invisible character U\\+D800"),
        ({"calendar": "office"}, "calendar 'office' does not exist"),
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
    assert sync().lines == ["- from code"]
    assert PeriodicTask.objects.filter(pk=users.pk).exists()


def test_celerys_own_clean_up_is_among_them(monkeypatch: pytest.MonkeyPatch) -> None:
    cleanup = row("celery.backend_cleanup")
    assert (cleanup.task, cleanup.expire_seconds) == ("celery.backend_cleanup", 12 * 3600)
    assert (cleanup.crontab.minute, cleanup.crontab.hour) == ("0", "4")
    assert Policy.objects.get(schedule=cleanup).managed_by == ManagedBy.CODE
    monkeypatch.setitem(current_app.conf, "result_expires", None)
    assert sync().lines == ["- celery.backend_cleanup"]


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
        ({"options": {"time_limit": 30}}, "has the option 'time_limit', not one of queue"),
        ({"options": [1]}, "has the options .1.: give a dict"),
        ({"args": "ab"}, "has the args 'ab': give a list"),
        ({"args": (object(),)}, "are not JSON"),
        ({"kwargs": [1]}, "has the kwargs .1.: give a dict"),
        ({"policy": {"calendar": 5}}, "calendar '5' does not exist"),
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


def test_a_users_schedule_that_differs_is_left_alone_and_listed(settings: Settings) -> None:
    schedule("from code", interval=interval(1), queue="mine", policy={"overlap": "skip"})
    assert entry(settings, args=(9, 9)) == []
    assert sync().left == [
        "! from code: args: [1, 2] -> [9, 9]; queue: mine -> none; policy overlap: skip -> allow"
    ]
    assert (row().args, row().queue) == ("[1, 2]", "mine")
    assert Policy.objects.get(schedule=row()).managed_by == ManagedBy.USER


def test_a_users_schedule_is_taken_over_where_that_is_asked_for(settings: Settings) -> None:
    schedule("from code", policy={"overlap": "skip", "paused_at": NOON})
    entry(settings, args=(9, 9))
    rule = recurrence.describe(rule_of(row()))
    assert from_code.compare(["from code"]).lines == [
        f"= from code: now belongs to code; rule: {rule} -> every minute;"
        " args: [1, 2] -> [9, 9]; policy overlap: skip -> allow"
    ]
    assert row().args == "[1, 2]"
    assert len(sync(["from code"]).lines) == 1
    treated = Policy.objects.get(schedule=row())
    assert (row().args, str(row().scheduler)) == ("[9, 9]", "every minute")
    assert (treated.managed_by, treated.overlap, treated.paused_at) == ("code", "allow", NOON)
    assert sync().lines == sync().left == []


def test_a_user_can_ask_for_all_to_be_taken_over_and_for_none_that_code_has_not(
    settings: Settings,
) -> None:
    schedule("from code")
    entry(settings)
    with pytest.raises(ScheduleError, match="code has no schedule 'from cod': did you mean"):
        sync(["from cod"])
    assert len(sync(everything=True).lines) == 1
    assert sync().left == []


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


def test_migrate_says_which_schedules_it_has_left_and_how_to_take_them_over(
    settings: Settings,
) -> None:
    schedule("taken")
    settings.CELERY_BEAT_SCHEDULE = {"taken": {"task": ADD, "schedule": 60}}
    out = io.StringIO()
    call_command("migrate", stdout=out)
    assert "\n  ! taken: rule: 0 0 1 " in out.getvalue()
    assert "`manage.py schedule sync --take-over NAME` makes it the code's" in out.getvalue()
    assert row("taken").args == "[1, 2]"


def test_migrate_ends_well_though_an_entry_asks_for_a_calendar_to_come(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = {"task": ADD, "schedule": 60, "policy": {"calendar": "office"}}
    settings.CELERY_BEAT_SCHEDULE = {"worked": entry}
    call_command("migrate", verbosity=0)
    said = capsys.readouterr().err
    assert "were not written: CELERY_BEAT_SCHEDULE['worked'], policy: calendar: calendar" in said
    assert "then run `manage.py schedule sync`" in said


def test_migrate_refuses_a_bad_entry_before_it_changes_anything(settings: Settings) -> None:
    settings.CELERY_BEAT_SCHEDULE = {"bad": {"task": ADD, "schedule": "hourly"}}
    with pytest.raises(SystemCheckError, match=r"CELERY_BEAT_SCHEDULE\['bad'\] has the schedule"):
        call_command("migrate", verbosity=0, skip_checks=False)


class Row(NamedTuple):
    """The row that django-celery-beat's own scheduler makes of an entry, and its change-over."""

    entry: dict[str, Any]
    words: str  # the line about its change-over, after "now belongs to code"


AS_WRITTEN = {
    "an interval": Row({"schedule": 60.0}, ""),
    "a part of a second": Row({"schedule": 1.5}, "; rule: every second -> every 1500 milliseconds"),
    "a crontab": Row({"schedule": schedules.crontab(hour=6, minute="*/5")}, ""),
    "a crontab of lists": Row(
        {"schedule": schedules.crontab(minute=[0, 30])}, "; rule: {row} -> 0,30 * * * * (UTC)"
    ),
    "a crontab of a zone": Row(
        {"schedule": TzAwareCrontab(hour="6", minute="0", tz=ZoneInfo("Europe/Berlin"))}, ""
    ),
    "a solar event": Row({"schedule": schedules.solar("sunset", 52.5, 13.4)}, ""),
    "options": Row({"options": {"queue": "q", "priority": 3, "headers": {"t": 1}}}, ""),
    "an exchange": Row({"options": {"exchange": "e", "routing_key": "a.b"}}, ""),
    "an expiry": Row({"options": {"expires": 60}}, "; expire_seconds: none -> 60"),
    "its own word for an expiry": Row({"options": {"expire_seconds": 60}}, ""),
    "an option of messages": Row({"options": {"serializer": "json", "retry": True}}, ""),
    "its own columns": Row({"enabled": False, "description": "Nightly", "one_off": True}, ""),
}


def let_celery_beat_write() -> None:
    """Run django-celery-beat's own scheduler, as it starts, on the entries of the settings."""
    PeriodicTask.objects.all().delete()
    DatabaseScheduler(current_app)


@pytest.mark.django_db(transaction=True)
def test_rows_of_django_celery_beats_own_scheduler_become_codes(settings: Settings) -> None:
    settings.CELERY_BEAT_SCHEDULE = {
        name: {"task": ADD, "schedule": 60, "args": (1, 2), **written.entry}
        for name, written in AS_WRITTEN.items()
    }
    let_celery_beat_write()
    expected = {"= celery.backend_cleanup: now belongs to code"}
    for name, (_, words) in AS_WRITTEN.items():
        expected.add(f"= {name}: now belongs to code{words.format(row=row(name).crontab)}")
    assert set(sync().lines) == expected
    assert set(Policy.objects.values_list("managed_by", flat=True)) == {ManagedBy.CODE}
    assert sync().lines == sync().left == []


@pytest.mark.django_db(transaction=True)
def test_a_rule_that_has_two_rows_is_one_rule(settings: Settings) -> None:
    first, second = crontab("0", "4"), crontab("0", "4")
    settings.CELERY_BEAT_SCHEDULE = {"four": {"task": ADD, "schedule": schedules.crontab("0", "4")}}
    let_celery_beat_write()
    for shared in (first, second):
        Policy.objects.all().delete()
        PeriodicTask.objects.update(crontab=shared)
        assert len(sync().lines) == 2
        assert {task.crontab for task in PeriodicTask.objects.all()} == {shared}


@pytest.mark.django_db(transaction=True)
def test_what_a_user_has_edited_of_such_a_row_is_listed(settings: Settings) -> None:
    settings.CELERY_BEAT_SCHEDULE = {"nightly": {"task": ADD, "schedule": 60, "args": (1, 2)}}
    let_celery_beat_write()
    PeriodicTask.objects.filter(name="nightly").update(args="[3, 4]", enabled=False)
    assert sync().left == ["! nightly: args: [3, 4] -> [1, 2]"]
    assert len(sync(["nightly"]).lines) == 1
    assert (row("nightly").args, row("nightly").enabled) == ("[1, 2]", False)


class TestEntriesThatCodeAdds:
    """They end in `app.conf.beat_schedule`, as Celery's own beat reads it."""

    @pytest.fixture(autouse=True)
    def _as_before(self) -> Iterator[None]:
        changes: Any = current_app.conf.changes
        yield
        changes.pop("beat_schedule", None)

    @pytest.mark.parametrize(
        ("rule", "options", "expected"),
        [
            (2.0, {"name": "x"}, ("x", "every 2 seconds", None, None)),
            (timedelta(minutes=1), {}, ("tests.jobs.tasks.add(1, 2)", "every minute", None, None)),
            (schedules.crontab("0", "6"), {"name": "x", "queue": "q"}, ("x", "0 6", "q", None)),
            (schedules.solar("sunset", 52, 13), {"name": "x", "expires": 5}, ("x", "Sun", None, 5)),
        ],
    )
    def test_add_periodic_task_makes_a_schedule_of_code(
        self, rule: Any, options: dict[str, Any], expected: tuple[Any, ...]
    ) -> None:
        current_app.add_periodic_task(rule, tasks.add.s(1, 2), **options)
        (line,) = sync().lines
        assert line.startswith(f"+ {expected[0]}: ")
        made = row(expected[0])
        assert expected[1] in str(made.scheduler)
        assert (made.args, made.queue, made.expire_seconds) == ("[1, 2]", *expected[2:])

    def test_the_options_and_arguments_of_a_signature_count(self) -> None:
        signature = tasks.write.s("path", text="t").set(queue="q", priority=3)
        current_app.add_periodic_task(60, signature, name="x", expires=9)
        sync()
        made = row("x")
        assert (made.args, made.kwargs) == ('["path"]', '{"text": "t"}')
        assert (made.queue, made.priority, made.expire_seconds) == ("q", 3, 9)

    def test_a_beat_schedule_set_on_the_app_counts_in_place_of_the_setting(
        self, settings: Settings
    ) -> None:
        settings.CELERY_BEAT_SCHEDULE = {"set": {"task": ADD, "schedule": 60}}
        assert sync().lines == ["+ set: every minute"]
        current_app.conf.beat_schedule = {"in code": {"task": ADD, "schedule": 60}}
        assert sync().lines == ["+ in code: every minute", "- set"]
        assert "'set'" in " ".join(check.msg for check in checks.run_checks())
        current_app.conf.update(beat_schedule={"again": {"task": ADD, "schedule": 60}})
        assert sync().lines == ["+ again: every minute", "- in code"]

    def test_a_canvas_is_refused_by_name(self) -> None:
        current_app.add_periodic_task(60, tasks.add.s(1, 2) | tasks.add.s(1), name="both")
        with pytest.raises(
            ScheduleError, match=r"\['both'\] has the task 'celery.chain', which is"
        ):
            sync()

    def test_what_is_no_dict_is_refused(self) -> None:
        current_app.conf.beat_schedule = [1]
        with pytest.raises(ScheduleError, match=r"app.conf.beat_schedule is \[1\]: give a dict"):
            sync()


@pytest.mark.parametrize(
    ("columns", "kept"),
    [
        ({"task": tasks.add}, {"task": ADD}),
        ({"options": {"queue": Queue("q", Exchange("e"), "k")}}, {"queue": "q"}),
        ({"options": {"exchange": Exchange("e"), "routing_key": "k"}},
         {"exchange": "e", "routing_key": "k"}),
        ({"enabled": False}, {"enabled": False}),
    ],
)  # fmt: skip
def test_what_celery_takes_as_objects_is_kept_by_name(
    settings: Settings, columns: dict[str, Any], kept: dict[str, Any]
) -> None:
    entry(settings, **columns)
    assert {name: getattr(row(), name) for name in kept} == kept
    assert sync().lines == []


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"task": object()}, "has the task <object .*: give its name"),
        ({"task": tasks.add.s(1)}, "has the task .*: give its name"),
        ({"task": 5}, "has the task 5: give its name"),
        ({"task": ""}, "has the task '': give its name"),
        ({"task": "celery.group"}, "is not one task: give a task that starts it"),
        ({"options": {"queue": 5}}, "the option queue=5: give its name"),
        ({"options": {"queue": {"name": "q"}}}, "the option queue={'name': 'q'}: give its name"),
        ({"options": {"exchange": ["e"]}}, "the option exchange=.'e'.: give its name"),
        ({"options": {"routing_key": 5}}, "the option routing_key=5: give its name"),
        ({"options": {"countdown": 5}}, "has the option 'countdown'"),
        ({"args": (n for n in (1, 2))}, "has the args <generator .*: give a list"),
        ({"args": {1, 2}}, "has the args {1, 2}: give a list"),
        ({"kwargs": {1: 2}}, "the key 1 is not a text"),
        ({"schedule": "60"}, "has the schedule '60': give a crontab"),
        ({"schedule": True}, "has the schedule True: give a crontab"),
        ({"schedule": clocked(NOON)}, "one of class clocked"),
        ({"enabled": "maybe"}, "enabled: .*must be either True or False"),
    ],
)
def test_what_has_no_name_or_is_no_value_is_refused(
    settings: Settings, columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(ScheduleError, match=rf"CELERY_BEAT_SCHEDULE\['from code'\].*{message}"):
        entry(settings, **columns)


@pytest.mark.django_db(transaction=True)
def test_the_second_of_two_deploys_at_once_sees_what_the_first_wrote(settings: Settings) -> None:
    settings.CELERY_BEAT_SCHEDULE = {"nightly": {"task": ADD, "schedule": 60}}
    with transaction.atomic():
        assert sync().lines == ["+ nightly: every minute"]
        second = in_thread(sync)
        assert wait_for(lambda: second.done() or is_blocked())
    assert second.result(5).lines == []


@pytest.mark.django_db(transaction=True)
def test_a_name_that_a_user_takes_at_that_very_moment_is_left_to_them(settings: Settings) -> None:
    settings.CELERY_BEAT_SCHEDULE = {"nightly": {"task": ADD, "schedule": 60}}
    with transaction.atomic():
        schedule("nightly")
        code = in_thread(sync)
        assert wait_for(lambda: code.done() or is_blocked())
    assert len(code.result(5).left) == 1


@pytest.mark.parametrize(
    "step",
    [
        timedelta(0),
        timedelta(seconds=-5),
        timedelta.max,
        timedelta(days=5000, microseconds=1),
        timedelta(microseconds=1),
        timedelta(seconds=0.5),
    ],
)
def test_an_interval_that_cannot_be_stored_is_refused(settings: Settings, step: timedelta) -> None:
    with pytest.raises(ScheduleError):
        entry(settings, schedule=step)


@pytest.mark.django_db(transaction=True)
def test_whoever_edits_a_rule_meanwhile_only_waits(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    Calendar.objects.create(name="Mondays", weekdays=[0])
    rule, apply, edits = schedules.crontab("33", "3"), from_code._apply, list[Any]()
    first: dict[str, Any] = {"task": ADD, "schedule": rule}
    settings.CELERY_BEAT_SCHEDULE = {"first": first, "second": {"task": ADD, "schedule": 60}}
    sync()
    shared = CrontabSchedule.objects.filter(minute="33", hour="3")

    def apply_and_let_edit(step: from_code.Step, now: datetime) -> None:
        apply(step, now)
        if step.name == "first":  # whose plan is locked now
            edits.append(in_thread(lambda: shared.update(minute="34")))
            wait_for(is_blocked)

    monkeypatch.setattr(from_code, "_apply", apply_and_let_edit)
    settings.CELERY_BEAT_SCHEDULE = {
        "first": {**first, "policy": {"calendar": "Mondays"}},
        "second": first,
    }
    assert len(sync().lines) == 2
    assert edits[0].result(5) == 1
