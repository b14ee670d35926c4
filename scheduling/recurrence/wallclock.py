"""Maps wall-clock times of a zone to instants and back; only this module knows UTC offsets.

A zone's time is cut into stretches of constant offset. Instants here are naive UTC datetimes, wall
clocks are naive local ones; aware datetimes stop at the package's face.
"""

import zoneinfo
from collections.abc import Iterator
from datetime import date, datetime, time, timedelta
from functools import lru_cache
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple
from zoneinfo import ZoneInfo

from .errors import UnknownTimezone

# Rules on wall clocks are defined between these instants; elsewhere nothing occurs.
FIRST = datetime.combine(date(1900, 1, 1), time())
LAST = datetime.combine(date(2200, 1, 1), time())

# No zone changes its offset twice within three days, or by more than 24 hours (a test holds the
# whole database against this), so these probes find every change.
_PROBE = timedelta(days=2)
_LEAD = timedelta(days=2)
_SECOND = timedelta(seconds=1)
# No clock is further ahead of UTC than this.
_BEHIND = timedelta(hours=26)
# Files beside the zones on many machines: clocks that count leap seconds, and the zone of this
# machine, which other machines need not have.
_NO_ZONES = {"localtime", "posixrules"}
_NO_DIRECTORIES = ("right/", "posix/")


class Stretch(NamedTuple):
    """The instants start <= t < end, for which a zone's clocks show t + offset.

    `opens` is the wall clock at `start`; `reached` is the latest wall clock shown before `start`.
    If they differ, the clocks changed: [reached, opens) was never shown (a gap), or
    [opens, reached) is shown a second time.
    """

    start: datetime
    end: datetime
    offset: timedelta
    opens: datetime
    reached: datetime

    @property
    def after_gap(self) -> bool:
        return self.reached < self.opens


@lru_cache(maxsize=1024)
def zone(name: str) -> ZoneInfo:
    """The IANA zone of that name. Raises UnknownTimezone."""
    try:
        if name in _NO_ZONES or name.startswith(_NO_DIRECTORIES):
            raise ValueError(name)
        return ZoneInfo(name)
    # A directory of the database ("Europe") raises an OSError, an odd path a ValueError.
    except (KeyError, ValueError, OSError) as error:
        raise UnknownTimezone(
            f"{name!r} is not a time zone: use an IANA name such as 'Europe/Berlin' or 'UTC'"
        ) from error


def stretch_at(tz: ZoneInfo, instant: datetime) -> Stretch:
    """The stretch that holds `instant`, cut at the turn of the UTC year."""
    for stretch in _stretches(tz, instant.year):
        if instant < stretch.end:
            return stretch
    raise AssertionError(f"the stretches of {instant.year} end before {instant}")


def first_instant(tz: ZoneInfo, wall: datetime) -> datetime:
    """The first instant at which the clocks show `wall`, or have jumped over it."""
    instant = wall - _BEHIND
    while True:
        stretch = stretch_at(tz, instant)
        if wall < stretch.end + stretch.offset:
            return max(wall - stretch.offset, stretch.start)
        instant = stretch.end


@lru_cache(maxsize=4096)
def _stretches(tz: ZoneInfo, year: int) -> tuple[Stretch, ...]:
    """The year's stretches, with regard to the times shown in the last days of the year before."""
    opening, closing = _new_year(year), _new_year(year + 1)
    edges = [opening - _LEAD, *_changes(tz, opening - _LEAD, closing), closing]
    reached = edges[0] + _offset(tz, edges[0])
    stretches = []
    for start, end in pairwise(edges):
        offset = _offset(tz, start)
        if end > opening:
            begin = max(start, opening)
            if begin > start:  # the repeated time may go on
                reached = max(reached, begin + offset)
            stretches.append(Stretch(begin, end, offset, begin + offset, reached))
        reached = end + offset
    return tuple(stretches)


def _changes(tz: ZoneInfo, a: datetime, b: datetime) -> Iterator[datetime]:
    """The instants a < t < b at which the zone's offset changes."""
    offset = _offset(tz, a)
    while a < b:
        probe = min(a + _PROBE, b)
        before, offset = offset, _offset(tz, probe)
        if offset != before:
            change = _change_within(tz, a, probe)
            if change < b:
                yield change
        a = probe


def _change_within(tz: ZoneInfo, before: datetime, after: datetime) -> datetime:
    """The one change in (before, after], to the second, by bisection."""
    old = _offset(tz, before)
    while after - before > _SECOND:
        middle = before + (after - before) // (2 * _SECOND) * _SECOND
        if _offset(tz, middle) == old:
            before = middle
        else:
            after = middle
    return after


def _offset(tz: ZoneInfo, instant: datetime) -> timedelta:
    return tz.fromutc(instant.replace(tzinfo=tz)).replace(tzinfo=None) - instant


def _new_year(year: int) -> datetime:
    return datetime.combine(date(year, 1, 1), time())


@lru_cache(maxsize=1)
def tzdata_version() -> str:
    """The release of the time zone database in use, such as "2025b"; "unknown" if it has no name.

    zoneinfo reads the system's database first and the `tzdata` package only without it,
    so this looks in the same order.
    """
    for directory in map(Path, zoneinfo.TZPATH):
        if (directory / "UTC").exists():
            return _release_in(directory)
    try:
        return str(import_module("tzdata").IANA_VERSION)
    except ImportError:
        return "unknown"


def _release_in(directory: Path) -> str:
    """Debian and others keep the release in tzdata.zi's first line, macOS in +VERSION."""
    for name in ("tzdata.zi", "+VERSION"):
        try:
            with (directory / name).open(encoding="utf-8") as source:
                return source.readline().removeprefix("# version ").strip()
        except OSError:
            continue
    return "unknown"
