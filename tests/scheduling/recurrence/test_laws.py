"""Laws that hold for every rule, zone and instant, and the zone database's own law."""

import io
import pickle
import struct
import zoneinfo
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from importlib import resources
from itertools import pairwise
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scheduling.recurrence import (
    CronRule,
    DaysOff,
    ExcludedDay,
    Rule,
    bounded,
    count_between,
    cron,
    days_off,
    every,
    latest_between,
    next_after,
    occurrences_between,
    on_working_days,
    once,
    preview,
)
from scheduling.recurrence.dialect import numbers
from scheduling.recurrence.wallclock import stretch_at

ZONES = sorted(zoneinfo.available_timezones() - {"localtime", "posixrules"})

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)

# Days on which something happens to clocks, so that most examples meet a change.
CHANGES = [
    ("America/New_York", "2026-03-08T07:00"),
    ("America/New_York", "2026-11-01T06:00"),
    ("America/New_York", "2100-11-07T06:00"),
    ("Europe/Berlin", "2026-03-29T01:00"),
    ("Europe/Berlin", "2026-10-25T01:00"),
    ("Europe/London", "1999-10-31T01:00"),
    ("Australia/Lord_Howe", "2026-04-04T15:00"),
    ("Australia/Lord_Howe", "2026-10-03T15:30"),
    ("Asia/Beirut", "2026-03-28T22:00"),
    ("Asia/Beirut", "2026-10-24T21:00"),
    ("America/Havana", "2026-03-08T05:00"),
    ("America/Havana", "2026-11-01T05:00"),
    ("Africa/Cairo", "2026-04-23T22:00"),
    ("Pacific/Apia", "2011-12-30T10:00"),
    ("Pacific/Kiritimati", "1994-12-31T10:00"),
    ("America/Caracas", "2007-12-09T07:00"),
    ("America/Caracas", "2016-05-01T07:00"),
    ("Europe/Istanbul", "2016-09-06T21:00"),
    ("Africa/Casablanca", "1985-12-31T23:00"),
    ("Africa/Casablanca", "2026-02-15T02:00"),
    ("Antarctica/Troll", "2026-03-29T01:00"),
    ("Antarctica/Troll", "2026-10-25T01:00"),
    ("Antarctica/Casey", "2020-10-03T16:01"),
    ("America/Danmarkshavn", "1996-01-01T03:00"),
    ("Asia/Gaza", "2040-10-26T23:00"),
]


def law(examples: int) -> Callable[..., Callable[..., None]]:
    """A derandomised property: the same examples in every run."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        return settings(derandomize=True, deadline=None, max_examples=examples, database=None)(test)

    return decorate


def field(low: int, high: int) -> st.SearchStrategy[str]:
    number = st.integers(low, high)
    return st.one_of(
        st.just("*"),
        number.map(str),
        st.lists(number, min_size=2, max_size=4).map(lambda found: ",".join(map(str, found))),
        st.tuples(number, number).map("{0[0]}-{0[1]}".format),
        st.integers(2, min(20, high - low + 1)).map("*/{}".format),
        st.tuples(number, number, number).map("{0[0]},{0[1]}-{0[2]}".format),
    )


often = st.just("*")
expressions = st.tuples(
    field(0, 59),
    field(0, 23) | field(0, 3),
    often | field(1, 31),
    often | field(1, 12),
    often | field(0, 6),
).map(" ".join)
dense_expressions = st.tuples(
    field(0, 59), field(0, 23) | field(0, 3), often, often, often | field(0, 6)
).map(" ".join)


@st.composite
def places_in_time(draw: st.DrawFn) -> tuple[str, datetime]:
    """A zone and an instant of it: near one of its changes, or anywhere from 1973 to 2100."""
    if draw(st.booleans()):
        zone, change = draw(st.sampled_from(CHANGES))
        instant = datetime.fromisoformat(change).replace(tzinfo=UTC)
        return zone, instant + draw(st.integers(-36 * 60, 36 * 60)) * MINUTE
    start = datetime(1973, 1, 1, tzinfo=UTC)
    return draw(st.sampled_from(ZONES)), start + draw(st.integers(0, 127 * 365 * 1440)) * MINUTE


@st.composite
def calendars(draw: st.DrawFn, instant: datetime) -> DaysOff:
    """Some weekdays, some days around an instant, and the holidays of a country or of none."""
    days = draw(st.frozensets(st.integers(-9, 9), max_size=6))
    return days_off(
        "days off",
        weekdays=draw(st.frozensets(st.integers(0, 6), max_size=5)),
        dates={instant.date() + number * DAY: "" for number in days},
        country=draw(st.sampled_from(["", "DE", "SA"])),
    )


excluded_days: st.SearchStrategy[ExcludedDay] = st.sampled_from(["skip", "previous", "next"])


@st.composite
def rules_and_instants(draw: st.DrawFn) -> tuple[Rule, datetime]:
    zone, instant = draw(places_in_time())
    kind = draw(st.integers(0, 5))
    rule: Rule
    if kind == 0:
        step = timedelta(
            seconds=draw(st.integers(600, 200_000)), microseconds=draw(st.integers(0, 9))
        )
        anchor = instant + timedelta(seconds=draw(st.integers(-(10**9), 10**6)))
        rule = every(step, anchor, includes_anchor=draw(st.booleans()))
    elif kind == 1:
        rule = once(instant + draw(st.integers(-1000, 3000)) * MINUTE)
    else:
        rule = cron(draw(expressions if kind == 2 else dense_expressions), zone)
    if draw(st.booleans()):
        rule = on_working_days(rule, draw(calendars(instant)), draw(excluded_days), zone)
    if draw(st.integers(0, 3)) == 0:
        start = instant + draw(st.integers(-1000, 2000)) * MINUTE
        end = start + draw(st.integers(0, 3000)) * MINUTE
        rule = bounded(rule, not_before=start, not_after=end, one_off=draw(st.booleans()))
    return rule, instant


spans = st.timedeltas(timedelta(0), 2 * DAY)


class TestLaws:
    @law(150)
    @given(rules_and_instants())
    def test_next_after_is_strictly_increasing(self, example: tuple[Rule, datetime]) -> None:
        rule, instant = example
        for _ in range(6):
            due = next_after(rule, instant)
            if due is None:
                return
            assert due > instant
            assert due.tzinfo is UTC
            instant = due

    @law(150)
    @given(rules_and_instants(), spans, spans)
    def test_occurrences_split_anywhere(
        self, example: tuple[Rule, datetime], first: timedelta, second: timedelta
    ) -> None:
        rule, a = example
        b, c = a + first, a + first + second
        whole = list(occurrences_between(rule, a, c))
        halves = [*occurrences_between(rule, a, b), *occurrences_between(rule, b, c)]
        assert whole == halves
        assert count_between(rule, a, b) + count_between(rule, b, c) == len(whole)

    @law(200)
    @given(rules_and_instants(), spans)
    def test_nothing_lies_between_an_instant_and_the_next(
        self, example: tuple[Rule, datetime], back: timedelta
    ) -> None:
        rule, instant = example
        due = next_after(rule, instant)
        if due is not None:
            assert next_after(rule, due - timedelta(microseconds=1)) == due
            assert list(occurrences_between(rule, instant, due)) == [due]
            assert count_between(rule, instant, due) == 1
            assert count_between(rule, instant, due - timedelta(microseconds=1)) == 0
            assert latest_between(rule, instant, due + back) == latest_between(
                rule, due - DAY, due + back
            )

    @law(200)
    @given(rules_and_instants(), spans)
    def test_counting_and_the_latest_agree_with_walking(
        self, example: tuple[Rule, datetime], span: timedelta
    ) -> None:
        rule, a = example
        walked = list(occurrences_between(rule, a, a + span))
        assert count_between(rule, a, a + span) == len(walked)
        assert latest_between(rule, a, a + span) == (walked[-1] if walked else None)

    @law(60)
    @given(rules_and_instants())
    def test_a_preview_is_the_next_occurrences(self, example: tuple[Rule, datetime]) -> None:
        rule, instant = example
        rows = preview(rule, instant, 4)
        for row in rows:
            due = next_after(rule, instant)
            assert row.due_at == due
            assert row.local.astimezone(UTC) == due
            assert (row.missing is not None) == (row.dst in ("shifted", "skipped"))
            instant = row.due_at

    @law(60)
    @given(rules_and_instants())
    def test_a_rule_is_a_value(self, example: tuple[Rule, datetime]) -> None:
        rule, _ = example
        copy = pickle.loads(pickle.dumps(rule))  # noqa: S301 (our own bytes)
        assert copy == rule
        assert hash(copy) == hash(rule)


class TestAgainstBruteForce:
    """Cron rules against a slow reading of the same sentences: try every minute."""

    @law(150)
    @given(dense_expressions, places_in_time())
    def test_it_yields_what_trying_every_minute_yields(
        self, expression: str, place: tuple[str, datetime]
    ) -> None:
        zone, a = place
        b = a + 30 * HOUR
        rule = cron(expression, zone)
        tried = tried_fixed(rule, a, b) if rule.fixed else tried_repeating(rule, a, b)
        assert list(occurrences_between(rule, a, b)) == tried


def tried_repeating(rule: CronRule, a: datetime, b: datetime) -> list[datetime]:
    """Every minute at which the clocks show a match; with fixed hours, also the ends of gaps."""
    zone = ZoneInfo(rule.timezone)
    found = {due for due in minutes(a, b) if matches(rule, due.astimezone(zone))}
    if rule.expression.split()[1].replace(",", "").isdigit():
        for wall in minutes(a - 3 * DAY, b + 3 * DAY):
            local = wall.replace(tzinfo=zone)
            exists = local.astimezone(UTC).astimezone(zone).replace(tzinfo=None)
            if matches(rule, wall) and exists != wall.replace(tzinfo=None):
                due = first_instant(wall.replace(tzinfo=None), zone)
                found |= {due} if a < due <= b else set()
    return sorted(found)


def tried_fixed(rule: CronRule, a: datetime, b: datetime) -> list[datetime]:
    """Every matching wall clock, mapped to an instant as PEP 495 has it."""
    zone = ZoneInfo(rule.timezone)
    walls = minutes(a - 3 * DAY, b + 3 * DAY)
    found = {
        first_instant(wall.replace(tzinfo=None), zone) for wall in walls if matches(rule, wall)
    }
    return sorted(due for due in found if a < due <= b)


def minutes(a: datetime, b: datetime) -> Iterator[datetime]:
    due = a.replace(second=0, microsecond=0) + MINUTE
    while due <= b:
        yield due
        due += MINUTE


def matches(rule: CronRule, wall: datetime) -> bool:
    read = numbers(rule.expression)
    return (
        wall.minute in read.minutes
        and wall.hour in read.hours
        and wall.day in read.days
        and wall.month in read.months
        and wall.isoweekday() % 7 in read.weekdays
    )


def first_instant(wall: datetime, zone: ZoneInfo) -> datetime:
    """The first instant at which the clocks show `wall`, or have passed over it."""
    due = wall.replace(tzinfo=zone, fold=0).astimezone(UTC)
    if due.astimezone(zone).replace(tzinfo=None) == wall:
        return due
    while (due - MINUTE).astimezone(zone).replace(tzinfo=None) > wall:
        due -= MINUTE
    return due


class TestZoneDatabase:
    """The assumptions of scheduling.recurrence.wallclock, checked on the database itself."""

    @pytest.mark.parametrize("part", range(4))
    def test_changes_are_days_apart_and_move_clocks_by_a_day_at_most(self, part: int) -> None:
        for name in ZONES[part::4]:
            for (one, _), (other, _) in pairwise(database_changes(name)):
                assert other - one > 3 * DAY, (name, one)
            assert all(abs(moved) <= DAY for _, moved in database_changes(name)), name

    @pytest.mark.parametrize(
        "name",
        [
            "Africa/Freetown",
            "Africa/Casablanca",
            "Antarctica/Casey",
            "America/Noronha",
            "Asia/Gaza",
        ],
    )
    def test_every_change_is_found(self, name: str) -> None:
        changes = [change for change, _ in database_changes(name)]
        assert changes_found(ZoneInfo(name), changes[0], changes[-1]) == changes

    def test_every_zone_has_its_changes_of_2026(self) -> None:
        a, b = datetime(2026, 1, 1, tzinfo=UTC), datetime(2026, 12, 31, tzinfo=UTC)
        for name in ZONES:
            zone = ZoneInfo(name)
            for change in changes_found(zone, a, b):
                before = (change - timedelta(seconds=1)).astimezone(zone)
                assert before.utcoffset() != change.astimezone(zone).utcoffset(), (name, change)


def changes_found(zone: ZoneInfo, a: datetime, b: datetime) -> list[datetime]:
    found = []
    instant, last = a.replace(tzinfo=None), b.replace(tzinfo=None)
    while instant <= last:
        stretch = stretch_at(zone, instant)
        if stretch.reached != stretch.opens:
            found.append(stretch.start.replace(tzinfo=UTC))
        instant = stretch.end
    return found


def database_changes(name: str) -> list[tuple[datetime, timedelta]]:
    """The offset changes after 1900 that a zone's file lists, and by how much (RFC 8536)."""
    source = io.BytesIO(zone_file(name))
    source.seek(20)
    counts = struct.unpack(">6l", source.read(24))
    isutc, isstd, leap, times, types, chars = counts
    source.seek(44 + times * 5 + types * 6 + chars + leap * 8 + isstd + isutc + 20)
    _, _, _, times, types, _ = struct.unpack(">6l", source.read(24))
    instants = struct.unpack(f">{times}q", source.read(times * 8))
    kinds = source.read(times)
    offsets = [struct.unpack(">lBB", source.read(6))[0] for _ in range(types)]
    changes = []
    offset = offsets[0]
    for instant, kind in zip(instants, kinds, strict=True):
        if offsets[kind] != offset and instant > -2_200_000_000:
            moved = timedelta(seconds=offsets[kind] - offset)
            changes.append((datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=instant), moved))
        offset = offsets[kind]
    return changes


def zone_file(name: str) -> bytes:
    for directory in zoneinfo.TZPATH:
        path = Path(directory, name)
        if path.is_file():
            return path.read_bytes()
    return resources.files("tzdata").joinpath("zoneinfo", *name.split("/")).read_bytes()
