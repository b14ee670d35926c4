"""Reads values from the command line: durations, instants, JSON, counts, ids.

Every function takes the typed text and serves as an argparse `type`. It refuses a text that it
cannot read, in one line that names the text and shows how to write it.
"""

import json
import math
import re
from argparse import ArgumentTypeError
from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta
from typing import Any, NamedTuple, NoReturn
from uuid import UUID
from zoneinfo import ZoneInfo

from django.conf import settings

from scheduling.recurrence import WEEKDAYS, first_instant

UNITS = ("weeks", "days", "hours", "minutes", "seconds")
DURATION = re.compile("".join(rf"(?:(?P<{unit}>\d+){unit[0]})?" for unit in UNITS), re.ASCII)
# An instant plus a duration must stay within datetime's years, so both bounds are well inside.
LONGEST = timedelta(days=36_500)
LAST_YEAR = 9000
FIRST_DATE, LAST_DATE = date(1900, 1, 1), date(2199, 12, 31)
# The largest number that a smallint column holds.
MOST = 32_767


class Moment(NamedTuple):
    """A typed instant; `note` names a decision that reading it took, or is ""."""

    at: datetime
    note: str = ""


def duration(text: str) -> timedelta:
    """Read 90s, 15m, 2h, 3d, 1w or several of them, the larger first: 1h30m."""
    found = DURATION.fullmatch(text.strip())
    if found is None or not found.group():
        raise ArgumentTypeError(
            f"{shown(text)} is not a duration: write 90s, 15m, 2h, 3d, 1w or 1h30m."
        )
    length = _length({unit: digits for unit, digits in found.groupdict().items() if digits})
    if not timedelta(0) < length <= LONGEST:
        raise ArgumentTypeError(
            f"{shown(text)} is out of range: a duration is more than 0s and at most"
            f" {LONGEST.days}d."
        )
    return length


def moment(text: str) -> Moment:
    """Read an ISO 8601 time; without an offset, it is a local time in TIME_ZONE."""
    try:
        read = datetime.fromisoformat(text.strip())
        _refuse_late_year(text, read)
        if read.tzinfo is None:
            return on_wall_clock(read, ZoneInfo(settings.TIME_ZONE))
        return Moment(read.astimezone(UTC))
    except (ValueError, OverflowError):
        raise ArgumentTypeError(
            f"{shown(text)} is not an ISO 8601 time: write 2026-12-01T06:00,"
            " 2026-12-01T06:00+01:00 or 2026-12-01T05:00Z."
        ) from None


def or_none(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """Return a type that reads `none` as None, and any other text as `read` does."""
    return lambda text: None if text.strip() == "none" else read(text)


def moment_or_duration(text: str) -> Moment | timedelta:
    """Read an ISO 8601 time, or a duration that counts from now."""
    try:
        return duration(text) if _is_duration(text) else moment(text)
    except ArgumentTypeError as error:
        if "ISO 8601" not in str(error):
            raise
        raise ArgumentTypeError(
            f"{shown(text)} is neither a duration (90s, 15m, 2h, 3d) nor an ISO 8601 time"
            " (2026-12-01T06:00+01:00)."
        ) from None


def on_wall_clock(wall: datetime, zone: ZoneInfo) -> Moment:
    """Return the instant at which a clock in `zone` shows the naive time `wall`.

    As in recurrence: a time that the clock jumps over is the first instant after the jump, and a
    time that it shows twice is the first of the two.
    """
    at = first_instant(wall, zone)
    if at.astimezone(zone).replace(tzinfo=None) != wall:
        note = f"{wall} does not exist in {zone}: the first instant after the jump was taken."
    elif at != wall.replace(tzinfo=zone, fold=1):
        note = f"{wall} occurs twice in {zone}: the first one was taken."
    else:
        note = ""
    return Moment(at, note)


def weekdays(text: str) -> list[int]:
    """Read days of the week, separated by commas, such as sat,sun; Monday is 0."""
    short = {name[:3].lower(): number for number, name in enumerate(WEEKDAYS)}
    names = short | {name.lower(): number for number, name in enumerate(WEEKDAYS)}
    words = [word.strip().lower() for word in text.split(",")]
    if unknown := [word for word in words if word not in names]:
        raise ArgumentTypeError(
            f"{shown(unknown[0])} is not a day of the week: write {', '.join(short)}."
        )
    return sorted({names[word] for word in words})


def dated(text: str) -> tuple[date, str]:
    """Read a date and, after an equals sign, its reason."""
    day, _, reason = text.partition("=")
    if not re.fullmatch(r"\d{4}-\d{2}-\d{2}", day.strip(), re.ASCII):
        raise ArgumentTypeError(_no_date(day))
    try:
        found = date.fromisoformat(day.strip())
    except ValueError:
        raise ArgumentTypeError(_no_date(day)) from None
    if not FIRST_DATE <= found <= LAST_DATE:
        raise ArgumentTypeError(f"{shown(day)} is out of range: rules are from 1900 to 2199.")
    return found, reason.strip()


def year(text: str) -> int:
    """Read a year of the calendar."""
    if not re.fullmatch(r"\d{4}", text.strip(), re.ASCII) or not 1900 <= int(text) < 2200:
        raise ArgumentTypeError(f"{shown(text)} is not a year from 1900 to 2199.")
    return int(text)


def _no_date(text: str) -> str:
    return f"{shown(text)} is not a date: write 2026-12-24, or 2026-12-24=reason."


def json_array(text: str) -> list[Any]:
    """Read a JSON array."""
    value = _json(text)
    if not isinstance(value, list):
        raise ArgumentTypeError(f"""{shown(text)} is not a JSON array, such as '[1, "a"]'.""")
    return value


def json_object(text: str) -> dict[str, Any]:
    """Read a JSON object."""
    value = _json(text)
    if not isinstance(value, dict):
        raise ArgumentTypeError(f"""{shown(text)} is not a JSON object, such as '{{"n": 1}}'.""")
    return value


def count(text: str) -> int:
    """Read a whole number from 1."""
    if not re.fullmatch(r"\d{1,9}", text.strip(), re.ASCII) or not 1 <= int(text) <= MOST:
        raise ArgumentTypeError(f"{shown(text)} is not a whole number from 1 to {MOST}.")
    return int(text)


def seconds(text: str) -> float:
    """Read a number of seconds, or a duration."""
    if re.fullmatch(r"\d{1,9}(\.\d{1,6})?", text.strip(), re.ASCII):
        return float(text)
    if _is_duration(text):
        return duration(text).total_seconds()
    raise ArgumentTypeError(
        f"{shown(text)} is not a number of seconds. To give no number, put the option last."
    )


def run_id(text: str) -> UUID:
    """Read the id of a run."""
    try:
        return UUID(text.strip())
    except ValueError:
        raise ArgumentTypeError(
            f"{shown(text)} is not a run's id, a UUID such as those in `run list`."
        ) from None


def shown(text: str, longest: int = 60) -> str:
    """Return the typed text as one short line for a message."""
    return repr(text if len(text) <= longest else f"{text[: longest - 1]}…")


def _is_duration(text: str) -> bool:
    return bool(text.strip()) and DURATION.fullmatch(text.strip()) is not None


def _length(counts: dict[str, str]) -> timedelta:
    try:
        return timedelta(**{unit: int(digits) for unit, digits in counts.items()})
    except (OverflowError, ValueError):  # int() refuses thousands of digits
        return timedelta.max


def _refuse_late_year(text: str, read: datetime) -> None:
    if read.year >= LAST_YEAR:
        raise ArgumentTypeError(f"{shown(text)} is out of range: years end at {LAST_YEAR - 1}.")


def _json(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except RecursionError:
        raise ArgumentTypeError(f"{shown(text)} is nested too deeply.") from None
    except ValueError as error:
        raise ArgumentTypeError(f"{shown(text)} is not JSON: {error}.") from None


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):  # json would write it as Infinity, which is not JSON
        raise ValueError(f"{digits} is too large")
    return number


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")
