"""The cron dialect, held against Celery's crontab and, as a second opinion, against croniter."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import pytest
from celery.schedules import crontab
from croniter import croniter
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduling.recurrence import InvalidCron, UnknownTimezone, cron, next_after
from scheduling.recurrence.dialect import Numbers, numbers, tidy

NEW_YEAR = datetime(2026, 1, 1, tzinfo=UTC)
WEEKDAYS = ["sun", "mon", "tue", "wed", "thu", "fri", "sat"]
MONTHS = ["jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec"]


def field(low: int, high: int, names: list[str] | None = None) -> st.SearchStrategy[str]:
    """Any text of a field: numbers, names, ranges both ways round, steps, lists of them."""
    number = st.integers(low, high).map(str)
    value = number | st.sampled_from(names) if names else number
    span = st.tuples(value, value).map("-".join)
    step = st.integers(1, min(20, high - low + 1)).map("/{}".format)
    part = st.one_of(
        st.just("*"),
        value,
        span,
        st.tuples(span | st.just("*"), step).map("".join),
    )
    return st.lists(part, min_size=1, max_size=3).map(",".join)


expressions = st.tuples(
    field(0, 59),
    field(0, 23),
    st.just("*") | field(1, 31),
    st.just("*") | field(1, 12, MONTHS),
    st.just("*") | field(0, 6, WEEKDAYS),
).map(" ".join)

instants = st.integers(0, 120 * 365 * 1440).map(
    lambda minutes: datetime(1970, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes)
)


def celery_crontab(expression: str) -> Any:
    minute, hour, day, month, weekday = expression.split()
    return crontab(
        minute,
        hour,
        day_of_month=day,
        month_of_year=month,
        day_of_week=weekday,
        nowfun=lambda: NEW_YEAR,
    )


def celery_occurrences(expression: str, after: datetime) -> Iterator[datetime]:
    rule = celery_crontab(expression)
    while True:
        last, delta, _ = rule.remaining_delta(after, tz=UTC)
        after = last + delta
        yield after


def croniter_occurrences(read: Numbers, after: datetime) -> Iterator[datetime]:
    spelled = " ".join(",".join(map(str, sorted(part))) for part in read[:5])
    walk = croniter(spelled, after, day_or=False, max_years_between_matches=50)
    while True:
        yield walk.get_next(datetime)


def our_occurrences(expression: str, after: datetime) -> Iterator[datetime]:
    rule = cron(expression, "UTC")
    while (due := next_after(rule, after)) is not None:
        yield due
        after = due


class TestOracles:
    @settings(derandomize=True, deadline=None, max_examples=250, database=None)
    @given(expressions, instants)
    def test_it_agrees_with_celery(self, expression: str, after: datetime) -> None:
        ours = list(islice(our_occurrences(expression, after), 4))
        try:
            theirs = list(islice(celery_occurrences(expression, after), 4))
        except (ValueError, RuntimeError):  # 31 February, or Celery gave up the search
            return
        assert ours == theirs

    @settings(derandomize=True, deadline=None, max_examples=120, database=None)
    @given(expressions, instants)
    def test_it_agrees_with_croniter(self, expression: str, after: datetime) -> None:
        ours = list(islice(our_occurrences(expression, after), 4))
        if len(ours) == 4 and ours[-1].year < 2130:
            assert ours == list(islice(croniter_occurrences(numbers(expression), after), 4))

    @settings(derandomize=True, deadline=None, max_examples=250, database=None)
    @given(expressions)
    def test_it_reads_the_numbers_that_celery_reads(self, expression: str) -> None:
        read = numbers(expression)
        try:
            theirs = celery_crontab(expression)
        except ValueError:  # Celery refuses 31 February here, we when the rule is checked
            return
        assert read.minutes == theirs.minute
        assert read.hours == theirs.hour
        assert read.days == theirs.day_of_month
        assert read.months == theirs.month_of_year
        assert read.weekdays == theirs.day_of_week


class TestNumbers:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("*", {0, 1, 2, 3, 4, 5, 6}),
            ("mon-fri", {1, 2, 3, 4, 5}),
            ("MON,Wednesday", {1, 3}),
            ("tues,thurs", {2, 4}),
            ("fri-mon", {5, 6, 0, 1}),
            ("*/2", {0, 2, 4, 6}),
            ("7", {0}),
            ("07", {0}),
            ("5-7", {5, 6, 0}),
            ("fri-7", {5, 6, 0}),
            ("1-7", {0, 1, 2, 3, 4, 5, 6}),
            ("0-7", {0, 1, 2, 3, 4, 5, 6}),
            ("1-7/2", {1, 3, 5, 0}),
            ("5-7/2", {5, 0}),
            ("7-2", {0, 1, 2}),
            ("7-3/2", {0, 2}),
            ("7-7", {0}),
            ("6,7", {6, 0}),
        ],
    )
    def test_it_reads_days_of_the_week(self, text: str, expected: set[int]) -> None:
        assert numbers(tidy(f"0 0 * * {text}")).weekdays == expected

    def test_it_wraps_ranges_around(self) -> None:
        assert numbers("0 22-2 * * *").hours == {22, 23, 0, 1, 2}
        assert numbers("50-10/10 0 * * *").minutes == {50, 0, 10}
        assert numbers("0 0 30-2 * *").days == {30, 31, 1, 2}
        assert numbers("0 0 * nov-february *").months == {11, 12, 1, 2}

    def test_it_needs_both_day_fields_to_match(self) -> None:
        friday_13 = next_after(cron("0 0 13 * fri", "UTC"), datetime(2026, 3, 14, tzinfo=UTC))
        assert friday_13 == datetime(2026, 11, 13, tzinfo=UTC)

    @pytest.mark.parametrize(
        ("expression", "fixed"),
        [
            ("30 9 * * *", True),
            ("0,30 9,17 * * 1-5", True),
            ("0 9-17 * * *", False),
            ("0 9-9 * * *", False),
            ("0,30-45 9 * * *", False),
            ("*/15 9 * * *", False),
            ("0 * * * *", False),
        ],
    )
    def test_a_list_with_one_range_or_step_is_not_fixed(self, expression: str, fixed: bool) -> None:
        assert numbers(expression).fixed is fixed


class TestRules:
    def test_spelling_differs_but_the_rule_is_one(self) -> None:
        rules = {cron("0 9 * * MON", "Europe/Berlin"), cron(" 0  9 * * mon ", "Europe/Berlin")}
        assert len(rules) == 1

    def test_the_zone_belongs_to_the_rule(self) -> None:
        assert cron("0 9 * * *", "Europe/Berlin") != cron("0 9 * * *", "Europe/Paris")

    def test_it_parses_once(self) -> None:
        assert cron("1 2 3 4 *", "UTC") is cron("1 2 3 4 *", "UTC")


class TestRefusals:
    @pytest.mark.parametrize(
        ("expression", "message"),
        [
            ("0 0 * * 5#2", "'#' in day of week '5#2' is not part of Celery's cron dialect.* 8-14"),
            ("0 0 * * fri#2", "'#' in day of week 'fri#2'"),
            ("0 0 L * *", "'L' in day of month 'l'.*28-31"),
            ("0 0 L-3 * *", "'L' in day of month 'l-3'"),
            ("0 0 * * 5L", "'L' in day of week '5l'"),
            ("0 0 * * friL", "'L' in day of week 'fril'"),
            ("0 0 15W * *", "'W' in day of month '15w'.*mon-fri"),
            ("0 0 LW * *", "'L' in day of month 'lw'"),
            ("0 0 ? * *", r"'\?' in day of month '\?'.*write \* instead"),
            ("H 0 * * *", "'H' in minute 'h'.*spread"),
            ("H/5 0 * * *", "'H' in minute 'h/5'"),
            ("H(0-29) 0 * * *", r"'H' in minute 'h\(0-29\)'"),
            ("60 0 * * *", "'60' in minute '60': use numbers from 0 to 59"),
            ("0 24 * * *", "'24' in hour '24': use numbers from 0 to 23"),
            ("0 0 0 * *", "'0' in day of month '0': use numbers from 1 to 31"),
            ("0 0 * 13 *", "'13' in month '13': use numbers from 1 to 12 or names"),
            ("0 0 * * 8", "'8' in day of week '8': use numbers from 0 to 6 or names"),
            ("0 0 * * 5-8", "'5-8' in day of week"),
            ("mon 0 * * *", "'mon' in minute"),
            ("0 0 * * jan", "'jan' in day of week"),
            ("0 0 * mon *", "'mon' in month"),
            ("0 0 * * mo", "'mo' in day of week"),
            ("0 0 * * monkey", "'monkey' in day of week"),
            ("*/0 0 * * *", r"step 0 in minute '\*/0': use a step of 1 or more"),
            ("5/10 0 * * *", "a step needs a range.*write 5-59/10"),
            ("1-5-7 0 * * *", "'1-5-7' in minute"),
            ("-5 0 * * *", "'-5' in minute"),
            ("1,,2 0 * * *", "empty part in minute '1,,2'"),
            ("*/ 0 * * *", r"'\*/' in minute"),
            ("٣ 0 * * *", "'٣' in minute"),
            ("1_0 0 * * *", "'1_0' in minute"),
            ("0 0 * *", "has 4 fields: write five"),
            ("0 0 * * * *", "has 6 fields: write five"),
            ("@daily", "'@daily' is not part of Celery's cron dialect: write '0 0 \\* \\* \\*'"),
            ("@Weekly", "'@weekly' is not part .*: write '0 0 \\* \\* 0'"),
            ("@reboot", "'@reboot' is not part .*: write five fields"),
            ("*/90 * * * *", r"step 90 in minute '\*/90' .* has 60 values.*write 0, or use an int"),
            ("0 */25 * * *", r"step 25 in hour '\*/25' .* has 24 values"),
            ("0 0 */32 * *", r"step 32 in day of month '\*/32' .* would mean 1"),
            ("0-30/61 0 * * *", "step 61 in minute '0-30/61'"),
            ("", "has 0 fields: write five"),
        ],
    )
    def test_it_names_the_value_and_what_to_do(self, expression: str, message: str) -> None:
        with pytest.raises(InvalidCron, match=f"(?s){message}"):
            cron(expression, "UTC")

    @pytest.mark.parametrize(
        "name",
        [
            *("Europe/Berln", "", "Europe", "../etc/passwd", "/etc/x", "a\0b"),
            # Files that many machines keep beside the zones.
            *("right/Europe/Berlin", "posix/UTC", "localtime", "posixrules", "tzdata.zi"),
        ],
    )
    def test_it_refuses_unknown_zones(self, name: str) -> None:
        with pytest.raises(UnknownTimezone, match="use an IANA name such as 'Europe/Berlin'"):
            cron("0 9 * * *", name)
