"""Celery's cron dialect: five fields of text in, five sets of numbers out.

Celery's own parser does the reading. It lets much nonsense pass (it reads `fri#2` as `fri`, `mon`
as minute 1, drops the end of `1-5-7`), so each part is held against the grammar first.
"""

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from celery.schedules import ParseException, crontab_parser

from .errors import InvalidCron

_PART = re.compile(
    r"(?:\*|(?P<first>[0-9]+|[a-z]+)(?P<range>-(?P<last>[0-9]+|[a-z]+))?)(?P<filter>/(?P<step>[0-9]+))?"
)

# Marks of other dialects, and how to say the same here.
_ELSEWHERE = {
    "#": "name the days it can fall on as well: the second Friday is day of month 8-14 and "
    "day of week fri (both must match)",
    "L": "use the 1st of the following month, or days 28-31 and let the job check the date",
    "W": "list the days it can fall on and set day of week to mon-fri (both must match)",
    "?": "write * instead",
    "H": "write a fixed number; to spread the load, give the schedule a spread",
}


_ALIASES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


@dataclass(frozen=True)
class _Field:
    name: str
    low: int
    size: int
    names: str = ""
    # What to use for a longer interval.
    instead: str = ""

    def knows(self, word: str) -> bool:
        """A name, or as much of it as makes three letters or more."""
        return len(word) >= 3 and f" {word}" in f" {self.names}"

    @property
    def advice(self) -> str:
        high = self.low + self.size - 1
        names = f" or names ({self.names[:3]})" if self.names else ""
        return (
            f"use numbers from {self.low} to {high}{names}, "
            f"as a list (1,5), a range (1-5), * or with a step (*/2)"
        )


_EVERY = ", or use an interval instead of a crontab"
_MINUTE = _Field("minute", 0, 60, instead=_EVERY)
_HOUR = _Field("hour", 0, 24, instead=_EVERY)
_DAY = _Field("day of month", 1, 31, instead=_EVERY)
_MONTH = _Field(
    "month",
    1,
    12,
    "january february march april may june july august september october november december",
)
_WEEKDAY = _Field("day of week", 0, 7, "sunday monday tuesday wednesday thursday friday saturday")


class Numbers(NamedTuple):
    """The numbers of each field; weekdays count from Sunday = 0.

    `fixed_hours`: the hour is a plain number or a list of them; `fixed`: so is the minute. A list
    that holds one range, step or wildcard (`0,30-45`) is not fixed.
    """

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]
    fixed: bool
    fixed_hours: bool


def tidy(expression: str) -> str:
    """One spelling for expressions that differ in case and spaces only."""
    return " ".join(expression.lower().split())


def numbers(expression: str) -> Numbers:
    """The numbers of a tidy expression. Raises InvalidCron."""
    texts = expression.split()
    if expression.startswith("@"):
        raise InvalidCron(_no_alias(expression))
    if len(texts) != 5:
        raise InvalidCron(
            f"{expression!r} has {len(texts)} fields: write five, separated by spaces: "
            "minute, hour, day of month, month, day of week"
        )
    minute, hour, day, month, weekday = texts
    return Numbers(
        _read(_MINUTE, minute),
        _read(_HOUR, hour),
        _read(_DAY, day),
        _read(_MONTH, month),
        _read(_WEEKDAY, weekday),
        fixed=(minute + hour).replace(",", "").isdigit(),
        fixed_hours=hour.replace(",", "").isdigit(),
    )


def _no_alias(expression: str) -> str:
    alias = f"{expression!r} is not part of Celery's cron dialect"
    if expression in _ALIASES:
        return f"{alias}: write {_ALIASES[expression]!r}"
    return f"{alias}: write five fields: minute, hour, day of month, month, day of week"


@lru_cache(maxsize=4096)  # so that equal sets of numbers are one object
def _read(where: _Field, text: str) -> frozenset[int]:
    return frozenset().union(*(_read_part(where, text, part) for part in text.split(",")))


def _read_part(where: _Field, text: str, part: str) -> set[int]:
    match = _PART.fullmatch(part)
    words = [word for word in (match["first"], match["last"]) if word] if match else []
    if match is None or not all(word.isdigit() or where.knows(word) for word in words):
        raise _refused(where, text, part)
    if match["step"] and int(match["step"]) == 0:
        raise InvalidCron(f"step 0 in {where.name} {text!r}: use a step of 1 or more")
    if match["step"] and int(match["step"]) > where.size:
        first = match["first"] or where.low
        raise InvalidCron(
            f"step {match['step']} in {where.name} {text!r} is longer than the field, which has"
            f" {where.size} values, so it would mean {first}: write {first}{where.instead}"
        )
    if match["filter"] and match["first"] and not match["range"]:
        raise InvalidCron(
            f"a step needs a range or *, not {part!r} in {where.name} {text!r}: "
            f"write {match['first']}-{where.low + where.size - 1}{match['filter']}"
        )
    size = where.size
    if where is _WEEKDAY:
        part, size = _sunday_as_seven(part, match)
    try:
        found = crontab_parser(size, where.low).parse(part)
    except (ValueError, ParseException) as error:
        raise InvalidCron(f"{part!r} in {where.name} {text!r}: {where.advice}") from error
    return {number % 7 for number in found} if where is _WEEKDAY else found


def _sunday_as_seven(part: str, match: re.Match[str]) -> tuple[str, int]:
    """7 is Sunday: at the end of a range the week goes on to 7 (5-7, 0-7), elsewhere it is 0.

    Returns the part to parse and the length of the week to parse it with.
    """
    first, last = (_is_seven(match[name]) for name in ("first", "last"))
    if first:
        last_word = "0" if last else match["last"]
        part = "0" + (f"-{last_word}" if last_word else "") + (match["filter"] or "")
    return part, 8 if last and not first else 7


def _is_seven(word: str | None) -> bool:
    return word is not None and word.isdigit() and int(word) == 7


def _refused(where: _Field, text: str, part: str) -> InvalidCron:
    mark = _foreign_mark(part)
    if mark:
        return InvalidCron(
            f"{mark!r} in {where.name} {text!r} is not part of Celery's cron dialect: "
            f"{_ELSEWHERE[mark]}"
        )
    what = f"{part!r} in {where.name} {text!r}" if part else f"empty part in {where.name} {text!r}"
    return InvalidCron(f"{what}: {where.advice}")


def _foreign_mark(part: str) -> str | None:
    """The mark of another dialect that makes `part` unreadable here, in capitals."""
    for mark in "#?":
        if mark in part:
            return mark
    if part.startswith("h("):
        return "H"
    word = part.strip("0123456789-/")
    if word in ("l", "w", "h", "lw", "wl"):
        return word[0].upper()
    return "L" if word.endswith("l") and _WEEKDAY.knows(word[:-1]) else None
