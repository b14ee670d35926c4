"""Looks for work: one statement a tick, with one cheap index probe for each kind of work.

While a dump or an idle transaction keeps an old snapshot, Postgres removes no index entry. The dead
entries of old runs lie before all waiting work, and a look from the beginning of the index reads
past all of them. So looks that take long become narrow: a narrow look begins where the last one
ended, or at the first piece of work that was left. Earlier rows (of a transaction that took long,
for example) are found in slices of the past, the newest first, for a small share of the time.
"""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from django.conf import settings
from django.db import OperationalError, connection

from scheduling.beat.lanes import BEFORE_ALL, FOREVER, OVERLAP, WAITING_LANES, Lanes
from scheduling.beat.lost_hints import LOST_AFTER
from scheduling.beat.slices import RARELY, SLICE, SLOW, SLOW_ONES, Slices
from scheduling.failures import alerts
from scheduling.logs import event
from scheduling.postgres.prepared import run_prepared
from scheduling.postgres.sql import statement_timeout, was_timed_out

logger = logging.getLogger(__name__)

SLOW_FOR = 0.5  # seconds that slow looks in a row have taken before they become narrow
MANY_PAGES = 400  # of tables and indexes; a look reads some forty without an old snapshot
TRY_BELOW = 0.3  # seconds of the whole way back below which a wide look is tried again
WIDE_AGAIN = 1000  # looks stay narrow for this many times the seconds of the slow look
WIDE_AGAIN_WITHIN = 600.0  # seconds
DOUBT_WITHIN = 10.0  # seconds until the pages of slow looks are counted again
LOOK_BACK_WITHIN = 0.02  # seconds until a busy beat, which never waits, looks at the past as well
THIS_SOON = timedelta(seconds=2)  # how far a narrow look sees into the future
LONG_AGO = datetime(1, 1, 2, tzinfo=UTC)
ALWAYS = timedelta(days=1_000_000)
MICROSECOND = timedelta(microseconds=1)
SECOND = 1_000_000  # of them

WAITS = "state IN ('scheduled', 'held', 'queued')"


class Kind(NamedTuple):
    """A kind of work: rows of a table, and the column by which an index orders them."""

    rows: str
    instant: str
    until: str  # rows up to this instant, in SQL, are work now


KINDS = {
    "due": Kind(
        "scheduling_plan WHERE true", "next_due_at", "statement_timestamp() + %(ahead)s::interval"
    ),
    "to_plan": Kind(
        "scheduling_plan WHERE needs_plan AND (next_due_at IS NULL OR next_due_at > plan_from)",
        "plan_from", "statement_timestamp() + %(ahead)s::interval",
    ),
    "leases": Kind(
        "scheduling_run WHERE state = 'running'", "lease_expires_at", "statement_timestamp()"
    ),
    "expired": Kind(f"scheduling_run WHERE {WAITS}", "expires_at", "statement_timestamp()"),
    "queued": Kind(
        "scheduling_run WHERE state = 'queued'", "queued_at",
        "statement_timestamp() - %(lost_after)s::interval",
    ),
    "passed": Kind(
        f"scheduling_run WHERE priority > 0 AND {WAITS}", "deadline", "statement_timestamp()"
    ),
    "near": Kind(
        f"scheduling_run WHERE priority > 3 AND {WAITS} AND deadline > statement_timestamp()",
        "deadline", "statement_timestamp() + %(deadline_near)s::interval",
    ),
    "failed": Kind(
        "scheduling_failure WHERE true", "noted_at", "statement_timestamp() + %(ahead)s::interval"
    ),
}  # fmt: skip

FIRST = """(SELECT CASE WHEN min({instant}) < '0001-01-03Z' THEN '0001-01-03Z'
            ELSE min({instant}) END FROM {rows}
       AND {instant} >= COALESCE(%({name})s::timestamptz, '-infinity')
       AND {instant} <= LEAST(%(until)s::timestamptz, {until})) AS {name}"""
FIRSTS = ",\n    ".join(FIRST.format(name=name, **kind._asdict()) for name, kind in KINDS.items())

HELD = "EXISTS (SELECT 1 FROM scheduling_run WHERE state = 'held' AND backfill_id IS NULL)"
UNHURRIED = """
    EXISTS (SELECT 1 FROM scheduling_run WHERE state = 'held' AND backfill_id IS NOT NULL),
    EXISTS (SELECT 1 FROM scheduling_failuregroup WHERE news <> '')
    AND NOT EXISTS (SELECT 1 FROM scheduling_run WHERE unique_key = %(alert)s
               AND state IN ('scheduled', 'held', 'queued', 'running'))
"""

# The first piece of work of each kind, from an instant of its own on.
LOOK_NARROWLY = f"SELECT statement_timestamp(),\n    {FIRSTS}"
LOOK = f"{LOOK_NARROWLY},\n    {HELD}, {UNHURRIED}"
LOOK_UNHURRIED = f"SELECT {UNHURRIED}"

FROM_THE_BEGINNING: dict[str, datetime | None] = dict.fromkeys(KINDS)


def look_settings() -> dict[str, Any]:
    """Return the parameters of LOOK except for its bounds."""
    return {
        "lost_after": LOST_AFTER,
        "deadline_near": settings.DEADLINE_NEAR,
        "alert": alerts.KEY,
    }


def everywhere() -> dict[str, Any]:
    """Return the parameters of a LOOK without bounds."""
    return {**look_settings(), **FROM_THE_BEGINNING, "until": FOREVER, "ahead": ALWAYS}


def pages_read(sql: str, parameters: Mapping[str, Any]) -> int:
    """Return how many pages a query reads."""
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF, FORMAT JSON) {sql}", parameters)
        ((explained,),) = cursor.fetchall()
    found = json.loads(explained) if isinstance(explained, str) else explained
    plan = found[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


class Look(NamedTuple):
    """The kinds of work that a tick has to do."""

    now: datetime
    next_due_in: float | None
    to_plan: bool
    leases_lost: bool
    expired: bool
    held: bool
    backfills_held: bool
    hints_old: bool
    deadlines: bool
    failed: bool
    news: bool


class Lookout:
    """Looks for work: everywhere while that is cheap, else narrowly.

    `lows` has a lower bound for each kind of work: as far as this lookout knows, no work of that
    kind lies before it. The steps of a tick begin there as well.
    """

    def __init__(self) -> None:
        self.lanes = Lanes()
        self.lows = dict(FROM_THE_BEGINNING)
        self._slow: list[float] = []  # seconds of the last looks, while these were slow
        self._wide_at = 0.0  # monotonic: no doubt before this instant
        self._past = Slices(0, _place(FOREVER), SECOND)
        self._looked_back_at = 0.0
        self._now = FOREVER
        self._firsts = dict(FROM_THE_BEGINNING)
        self._unhurried = (False, False)
        self._unhurried_at = 0.0

    @property
    def narrow(self) -> bool:
        return self.lanes.narrow

    def look(self) -> Look:
        """Return the work to do now."""
        if not self.narrow:
            return self._look_everywhere()
        now, *firsts = run_prepared(LOOK_NARROWLY, self._parameters(self.lows, FOREVER))[0]
        self._note(now, firsts)
        if time.monotonic() >= self._looked_back_at + LOOK_BACK_WITHIN:
            self.look_back(SLICE)
        if self._past.cost is not None and self._past.cost < TRY_BELOW:
            self.lanes.narrow = time.monotonic() < self._wide_at
        return self._found(True, *self._look_unhurried())

    def look_back(self, seconds: float) -> bool:
        """Look at slices of the past for about `seconds`; return whether work was found.

        It does nothing while looks are wide, or after the past has had its share of the time.
        """
        if not self.narrow:
            return False
        found = False
        self._looked_back_at = time.monotonic()
        for low, high in self._past.go_back(seconds, _place(self._now)):
            until = FOREVER if high is None else _instant(high)
            try:
                with statement_timeout(self._past.patience):
                    found |= self._look_between(None if low is None else _instant(low), until)
            except OperationalError as error:
                if not was_timed_out(error):
                    raise
                self._past.cut_off()
        return found

    def heard(self, seconds: float | None) -> None:
        """Look for runs that became visible `seconds` after their insert; None: unknown."""
        if seconds is None:
            self._past.begin_again()
        else:
            self.lanes.rewind(seconds)

    def after(self, kind: str) -> datetime:
        """Return an instant such that all work of this kind comes after it."""
        low = self.lows[kind]
        return LONG_AGO if low is None else low - MICROSECOND

    def lower(self, kind: str, instant: datetime | None) -> None:
        """Note that work of this kind begins at `instant`, or at an unknown one (None)."""
        low = self.lows[kind]
        if instant is None or instant <= BEFORE_ALL:
            self.lows[kind] = None
        elif low is not None:
            self.lows[kind] = min(low, instant)

    def _look_everywhere(self) -> Look:
        began = time.monotonic()
        (found,) = run_prepared(LOOK, everywhere())
        took = time.monotonic() - began + self.lanes.took
        self._slow = [*self._slow, took] if took > SLOW else []
        self._note(found[0], found[1 : 1 + len(KINDS)])
        if len(self._slow) >= SLOW_ONES and sum(self._slow) > SLOW_FOR and began >= self._wide_at:
            self._slow = []
            self._be_narrow(took)
        return self._found(*found[1 + len(KINDS) :])

    def _be_narrow(self, took: float) -> None:
        """Look narrowly for some time if a look reads many pages; else the machine is just busy."""
        now = time.monotonic()
        pages = pages_read(LOOK, everywhere()) + pages_read(WAITING_LANES, {})
        self.lanes.narrow = pages > MANY_PAGES
        if self.lanes.narrow:
            self._past = Slices(0, _place(FOREVER), SECOND)
            event(logger, "looks_narrow", pages=pages, took=round(took, 3))
            self._wide_at = now + min(WIDE_AGAIN * took, WIDE_AGAIN_WITHIN)
        else:
            self._wide_at = now + min(RARELY * took, DOUBT_WITHIN)

    def _note(self, now: datetime, firsts: Sequence[datetime | None]) -> None:
        """Set the lows: the first piece of work of a kind, or an instant just before this look."""
        seen = dict.fromkeys(KINDS, now - OVERLAP)
        seen["queued"] -= LOST_AFTER
        seen["near"] += settings.DEADLINE_NEAR
        self._now, self.lows = now, dict[str, datetime | None](seen)
        self._firsts = dict(zip(KINDS, firsts, strict=True))
        for name, first in self._firsts.items():
            if first is not None:
                self.lower(name, first)

    def _found(self, held: bool, backfills_held: bool, news: bool) -> Look:
        first, now = self._firsts, self._now
        next_due_in = None if first["due"] is None else (first["due"] - now).total_seconds()
        return Look(
            now, next_due_in, first["to_plan"] is not None, first["leases"] is not None,
            first["expired"] is not None, held, backfills_held, first["queued"] is not None,
            first["passed"] is not None or first["near"] is not None,
            first["failed"] is not None, news,
        )  # fmt: skip

    def _look_between(self, since: datetime | None, until: datetime) -> bool:
        lows: dict[str, datetime | None] = dict.fromkeys(KINDS, since)
        _, *firsts = run_prepared(LOOK_NARROWLY, self._parameters(lows, until))[0]
        news = self.lanes.look_between(since, until)
        for name, first in zip(KINDS, firsts, strict=True):
            low, known = self.lows[name], self._firsts[name]
            if first is not None and (known is None or first < known):
                self._firsts[name] = first
                news |= low is not None and first < low
                self.lower(name, first)
        return news

    def _look_unhurried(self) -> tuple[bool, bool]:
        began = time.monotonic()
        if began >= self._unhurried_at:
            (found,) = run_prepared(LOOK_UNHURRIED, {"alert": alerts.KEY})
            self._unhurried = found[0], found[1]
            self._unhurried_at = began + RARELY * (time.monotonic() - began)
        return self._unhurried

    def _parameters(self, lows: dict[str, datetime | None], until: datetime) -> dict[str, Any]:
        return {**look_settings(), **lows, "until": until, "ahead": THIS_SOON}


def _place(instant: datetime) -> int:
    """Return an instant as microseconds."""
    return (instant - BEFORE_ALL) // MICROSECOND


def _instant(place: int) -> datetime:
    return BEFORE_ALL + place * MICROSECOND
