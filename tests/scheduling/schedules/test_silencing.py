"""Edits of rules and calendars that schedules share, and schedules that they would silence."""

from datetime import UTC, date, datetime, timedelta

import pytest
from django_celery_beat.models import PeriodicTask

from scheduling import recurrence
from scheduling.errors import ScheduleError
from scheduling.models import Calendar, Plan
from scheduling.schedules import calendars, silencing
from tests.scheduling.ledger import NOON, crontab, interval, schedule, set_plan

pytestmark = pytest.mark.django_db


@pytest.fixture
def weekends() -> Calendar:
    return calendars.add("weekends", by="ann", weekdays=[5, 6])


def test_a_rule_that_falls_on_days_off_only_is_refused_with_the_names(weekends: Calendar) -> None:
    shared = crontab("0", "9")
    schedule("free", crontab=shared)
    for number in range(7):
        schedule(f"office {number}", crontab=shared, policy={"calendar": weekends})
    shared.day_of_week = "0"
    with pytest.raises(ScheduleError) as refused:
        silencing.check_rule("crontab", shared, NOON)
    assert "7 schedules would never fire again" in str(refused.value)
    assert "'office 0', 'office 1', 'office 2', 'office 3', 'office 4' and 2 more" in str(
        refused.value
    )
    assert "free" not in str(refused.value)


def test_one_that_moves_to_a_working_day_still_fires(weekends: Calendar) -> None:
    shared = crontab("0", "9")
    schedule(crontab=shared, policy={"calendar": weekends, "excluded_day": "next"})
    shared.day_of_week = "0"
    silencing.check_rule("crontab", shared, NOON)


def test_an_end_that_comes_before_the_rules_next_time_is_refused() -> None:
    shared = crontab("0", "9")
    schedule("until Sunday", crontab=shared, expires=NOON + timedelta(days=2))
    shared.month_of_year = "3"
    with pytest.raises(ScheduleError, match="until Sunday"):
        silencing.check_rule("crontab", shared, NOON)


def test_what_does_not_fire_anyway_stands_in_nobodys_way() -> None:
    shared = crontab("0", "9")
    end = NOON + timedelta(days=2)
    schedule("over", crontab=shared, expires=NOON - timedelta(days=2))
    schedule("disabled", crontab=shared, expires=end, enabled=False)
    done = schedule("done", crontab=shared, expires=end, one_off=True)
    set_plan(done, None, done=True)
    shared.month_of_year = "3"
    silencing.check_rule("crontab", shared, NOON)


def test_an_interval_counts_from_the_edit() -> None:
    shared = interval(5)
    short = schedule("short", interval=shared, expires=NOON + timedelta(hours=1))
    Plan.objects.filter(schedule=short).update(anchor_at=NOON)
    schedule("from then on", interval=shared, start_time=datetime(2026, 11, 21, tzinfo=UTC))
    shared.every = 70
    with pytest.raises(ScheduleError, match=r"a schedule would never fire again.*'short'"):
        silencing.check_rule("interval", shared, NOON)


def test_an_interval_that_always_falls_on_the_same_day_needs_that_day(weekends: Calendar) -> None:
    weekly = interval(7, "days")
    for name, anchor in (("Fridays", NOON), ("Mondays", NOON + timedelta(days=3))):
        row = schedule(name, interval=weekly, policy={"calendar": weekends})
        Plan.objects.filter(schedule=row).update(anchor_at=anchor)
    without_mondays = recurrence.days_off("weekends", weekdays=[0, 5, 6])
    with pytest.raises(ScheduleError, match=r"a schedule would.*'Mondays'"):
        silencing.check_calendar(weekends, without_mondays, NOON)


def test_a_calendar_is_held_against_each_shape_once(
    weekends: Calendar, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_at = []
    monkeypatch.setattr(recurrence, "check", lambda rule, now: looked_at.append(rule))
    for minute in ("0", "1"):
        shared = crontab(minute, "9")
        for number in range(20):
            schedule(f"{minute} {number}", crontab=shared, policy={"calendar": weekends})
    days_off = recurrence.days_off("weekends", weekdays=[4, 5, 6])
    silencing.check_calendar(weekends, days_off, NOON)
    assert len(looked_at) == 2


def test_only_so_many_shapes_are_looked_at() -> None:
    shared, end = crontab("0", "9"), NOON + timedelta(days=2)
    PeriodicTask.objects.bulk_create(
        PeriodicTask(name=str(n), task="a", crontab=shared, expires=end + timedelta(minutes=n))
        for n in range(silencing.MOST_SHAPES + 10)
    )
    shared.month_of_year = "3"
    with pytest.raises(ScheduleError, match=f"^{silencing.MOST_SHAPES} schedules would never"):
        silencing.check_rule("crontab", shared, NOON)


def test_a_date_may_be_the_last_day_that_was_left() -> None:
    calendar = calendars.add("one day", by="ann", weekdays=[5, 6])
    end = datetime(2026, 11, 23, 18, tzinfo=UTC)
    schedule("on Monday", crontab=crontab("0", "9"), expires=end, policy={"calendar": calendar})
    days_off = recurrence.days_off("one day", weekdays=[5, 6], dates={date(2026, 11, 23): "closed"})
    with pytest.raises(ScheduleError, match="on Monday"):
        silencing.check_calendar(calendar, days_off, NOON)
