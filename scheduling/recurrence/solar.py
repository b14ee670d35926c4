"""Solar rules: Celery's events of the sun at a place, computed by the package ephem.

ephem's answer for an event moves by fractions of a second with the instant it is asked from. Each
event is therefore computed once, from a fixed time of its local day, and cut to the whole second:
so the same event always is the same instant.
"""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from importlib import import_module
from math import radians
from typing import Any, NamedTuple, SupportsFloat

from .errors import InvalidSolar, MissingDependency
from .rule import Rule
from .wallclock import FIRST, LAST

_DAY = timedelta(days=1)
# An event that does not happen within a year does not happen at that place.
_SEARCH_DAYS = 370


class _Event(NamedTuple):
    horizon: str
    method: str
    options: dict[str, bool]

    @property
    def opens(self) -> timedelta:
        """When the day of such an event begins, in local mean time, six hours clear of it."""
        return timedelta(
            hours={"next_rising": -6, "next_transit": 6, "next_setting": 6}[self.method]
        )


_CENTRE = {"use_center": True}
_EVENTS = {  # as in celery.schedules.solar
    "dawn_astronomical": _Event("-18", "next_rising", _CENTRE),
    "dawn_nautical": _Event("-12", "next_rising", _CENTRE),
    "dawn_civil": _Event("-6", "next_rising", _CENTRE),
    "sunrise": _Event("-0:34", "next_rising", {}),
    "solar_noon": _Event("0", "next_transit", {}),
    "sunset": _Event("-0:34", "next_setting", {}),
    "dusk_civil": _Event("-6", "next_setting", _CENTRE),
    "dusk_nautical": _Event("-12", "next_setting", _CENTRE),
    "dusk_astronomical": _Event("-18", "next_setting", _CENTRE),
}


@dataclass(frozen=True, slots=True)
class SolarRule(Rule):
    """An event at a place, in degrees; days on which it does not happen are passed over."""

    event: str
    latitude: float
    longitude: float

    def next_after(self, instant: datetime) -> datetime | None:
        after = max(instant.replace(tzinfo=None), FIRST)
        today = (after - _opening(self)) // _DAY
        last = min(today + _SEARCH_DAYS, (LAST - FIRST) // _DAY)
        for day in range(today, last):
            due = _event_on(self, day)
            if due is not None and due > after:
                return due.replace(tzinfo=UTC)
        return None

    def describe(self) -> str:
        return f"{self.event} at {self.latitude:g}, {self.longitude:g}"

    def remedy(self) -> str:
        return "the event does not happen at that latitude: choose another event or place"


@lru_cache(maxsize=16_384)
def _event_on(rule: SolarRule, day: int) -> datetime | None:
    """The event's instant in one local day, counted from FIRST; None if it does not happen."""
    start = _opening(rule) + day * _DAY
    ephem = _ephem()
    horizon, method, options = _EVENTS[rule.event]
    observer = ephem.Observer()
    observer.lat, observer.lon = radians(rule.latitude), radians(rule.longitude)
    observer.horizon, observer.pressure = horizon, 0
    try:
        found: datetime = getattr(observer, method)(ephem.Sun(), start=start, **options).datetime()
    except ephem.CircumpolarError:
        return None
    return found.replace(microsecond=0) if found < start + _DAY else None


def _opening(rule: SolarRule) -> datetime:
    """When day 0 of the rule begins; the sun is an hour later for each 15 degrees west."""
    return FIRST + _EVENTS[rule.event].opens - timedelta(seconds=round(rule.longitude * 240))


def solar(event: str, latitude: SupportsFloat, longitude: SupportsFloat) -> SolarRule:
    """The rule of a solar event at a place in degrees, north and east positive.

    Raises InvalidSolar; MissingDependency without the package ephem.
    """
    _ephem()
    if event not in _EVENTS:
        raise InvalidSolar(f"unknown solar event {event!r}: use one of {', '.join(_EVENTS)}")
    return SolarRule(
        event, _degrees("latitude", latitude, 90), _degrees("longitude", longitude, 180)
    )


def _degrees(name: str, value: SupportsFloat, limit: int) -> float:
    degrees = float(value)
    if not -limit <= degrees <= limit:
        raise InvalidSolar(f"{name} {value} is not on Earth: use degrees from -{limit} to {limit}")
    return degrees


def _ephem() -> Any:
    try:
        return import_module("ephem")
    except ImportError as error:
        raise MissingDependency(
            "solar schedules need the package ephem, which is not installed: pip install ephem"
        ) from error
