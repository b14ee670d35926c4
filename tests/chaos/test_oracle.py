"""The oracle on dates that anybody can work out, and against the scheduler's own rules."""

from datetime import UTC, date, datetime, timedelta

import pytest

from chaos import oracle, plan
from chaos.oracle import Cron, Every, Noon, Off, Once, instants, is_off
from scheduling import recurrence

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def test_an_interval_counts_from_its_anchor() -> None:
    rule = Every(20, NOON, with_anchor=False)
    found = instants(rule, NOON - HOUR, NOON + timedelta(seconds=59))
    assert found == [NOON + timedelta(seconds=20), NOON + timedelta(seconds=40)]
    assert instants(Every(20, NOON, with_anchor=True), NOON - HOUR, NOON) == [NOON]


def test_a_crontab_is_read_on_the_clocks_of_its_zone() -> None:
    rule = Cron("0,30", "17", "fri", "Asia/Kathmandu")
    assert instants(rule, NOON - HOUR, NOON + HOUR) == [NOON - 3 * HOUR / 4, NOON - HOUR / 4]


def test_a_single_instant_is_one() -> None:
    assert instants(Once(NOON), NOON - HOUR, NOON) == [NOON]
    assert instants(Once(NOON), NOON, NOON + HOUR) == []


FRIDAY, SATURDAY = "2026-11-20", "2026-11-21"
NIGHT = datetime(2026, 11, 19, 18, 15, tzinfo=UTC)  # when Friday begins in Kathmandu


def test_what_is_skipped_is_an_instant_of_its_rule_all_the_same() -> None:
    off = Off("Asia/Kathmandu", [FRIDAY], "skip")
    rule = Every(3600, NIGHT, with_anchor=False)
    assert len(instants(rule, NIGHT, NOON, off)) == 17
    assert is_off(off, NIGHT)
    assert not is_off(off, NIGHT - timedelta(seconds=1))
    assert is_off(off, NOON + 6 * HOUR)
    assert not is_off(off, NOON + 7 * HOUR)


@pytest.mark.parametrize(
    ("treatment", "off", "weekday"),
    [("previous", SATURDAY, "sat"), ("next", FRIDAY, "fri"), ("next", SATURDAY, "*")],
)
def test_days_off_move_as_the_scheduler_moves_them(
    treatment: recurrence.ExcludedDay, off: str, weekday: str
) -> None:
    zone = "Asia/Kathmandu"
    days = recurrence.days_off("x", dates={date.fromisoformat(off): ""})
    rule = recurrence.on_working_days(
        recurrence.cron(f"7,31 3,22 * * {weekday}", zone), days, treatment, zone
    )
    ours = list(recurrence.occurrences_between(rule, NOON - 48 * HOUR, NOON + 96 * HOUR))
    oracles = instants(
        Cron("7,31", "3,22", weekday, zone), NOON - 48 * HOUR, NOON + 96 * HOUR,
        Off(zone, [off], treatment),
    )  # fmt: skip
    assert oracles == ours
    assert oracles


def test_the_sun_is_highest_where_it_is_looked_for() -> None:
    for hours in range(0, 24, 5):
        at = NOON + hours * HOUR
        (found,) = instants(Noon(oracle.noon_longitude(at)), at - HOUR, at + HOUR)
        assert abs(found - at) < timedelta(seconds=15)


@pytest.mark.parametrize("minutes", plan.MINUTES)
@pytest.mark.parametrize("zone", plan.ZONES)
def test_it_agrees_with_the_scheduler_away_from_changes_of_clocks(minutes: str, zone: str) -> None:
    rule = recurrence.cron(f"{minutes} * * * mon-sun", zone)
    ours = list(recurrence.occurrences_between(rule, NOON, NOON + 3 * HOUR))
    assert instants(Cron(minutes, "*", "mon-sun", zone), NOON, NOON + 3 * HOUR) == ours


def test_a_seed_is_one_plan() -> None:
    def made(seed: int) -> plan.Plan:
        return plan.make(seed, 60, lease=6, schedules=50, pace=2)

    assert made(7) == made(7)
    assert made(7) != made(8)
    assert {fault.kind for seed in range(20) for fault in made(seed).faults} == set(plan.KINDS)


def test_steps_of_the_clock_leave_the_other_faults_of_a_seed_as_they_are(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def faults(stepping: float) -> list[plan.Fault]:
        monkeypatch.setattr(plan, "STEPPING", stepping)
        return plan.make(7, 100, lease=6, schedules=50, pace=2).faults

    with_steps = faults(1.0)
    others = [fault for fault in with_steps if fault.kind != "step_clock"]
    assert others == faults(0.0)
    assert len(others) < len(with_steps)
