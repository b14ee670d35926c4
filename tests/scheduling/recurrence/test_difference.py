"""The changes when one rule replaces another, against a comparison of sets."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduling.recurrence import Rule, cron, difference, every, occurrences_between, once
from scheduling.recurrence import difference as compared
from scheduling.recurrence.difference import MOST_COMPARED
from scheduling.recurrence.errors import NaiveInstant

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
MONTH = NOON + timedelta(days=30)
RULES: list[Rule | None] = [
    None,
    cron("0 6 * * *", "Europe/Berlin"),
    cron("0 7 * * *", "Europe/Berlin"),
    cron("0 7 * * 1-5", "UTC"),
    cron("*/20 6 * * *", "UTC"),
    every(3600, NOON),
    every(5400, NOON),
    once(NOON + timedelta(days=3)),
]


def at(day: int, hour: int, month: int = 11) -> datetime:
    return datetime(2026, month, day, hour, tzinfo=UTC)


def test_a_rule_that_moves_by_an_hour_adds_and_removes_each_occurrence() -> None:
    found = difference(cron("0 6 * * *", "UTC"), cron("0 7 * * *", "UTC"), NOON, MONTH)
    assert (found.added, found.removed, found.kept) == (30, 30, 0)
    assert found.moved == (at(21, 6), at(21, 7))


def test_a_rule_that_leaves_out_weekends_removes_those() -> None:
    found = difference(cron("0 6 * * *", "UTC"), cron("0 6 * * 1-5", "UTC"), NOON, MONTH)
    assert (found.added, found.removed, found.kept) == (0, 10, 20)
    assert found.moved == (at(21, 6), at(23, 6))


def test_a_rule_that_ends_or_begins_has_no_instant_on_one_side() -> None:
    daily = cron("0 6 * * *", "UTC")
    assert difference(daily, None, NOON, MONTH).moved == (at(21, 6), None)
    assert difference(None, daily, NOON, MONTH).moved == (None, at(21, 6))


def test_equal_rules_differ_in_nothing() -> None:
    found = difference(every(60, NOON), cron("* * * * *", "UTC"), NOON, MONTH)
    assert (found.added, found.removed, found.kept, found.moved) == (0, 0, 43_200, None)
    assert found.complete


def test_what_is_too_much_to_compare_ends_early_and_says_where() -> None:
    found = difference(every(1, NOON), every(2, NOON), NOON, MONTH)
    assert not found.complete
    assert found.added + found.removed + 2 * found.kept <= MOST_COMPARED + 1
    assert NOON < found.until < MONTH


def test_an_instant_without_a_zone_is_refused() -> None:
    with pytest.raises(NaiveInstant):
        difference(None, None, datetime(2026, 11, 20), MONTH)  # noqa: DTZ001


@given(st.sampled_from(RULES), st.sampled_from(RULES), st.integers(0, 60))
def test_the_counts_are_those_of_sets(old: Rule | None, new: Rule | None, days: int) -> None:
    end = NOON + timedelta(days=days)
    olds, news = (
        set(occurrences_between(rule, NOON, end)) if rule else set() for rule in (old, new)
    )
    found = compared(old, new, NOON, end)
    assert (found.added, found.removed, found.kept) == (
        len(news - olds), len(olds - news), len(olds & news),
    )  # fmt: skip
    assert (found.moved is None) == (olds == news)
