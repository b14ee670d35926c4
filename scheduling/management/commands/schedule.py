"""`manage.py schedule`: add, list, preview, pause, resume and remove schedules."""

from argparse import ArgumentParser
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.utils import timezone

from scheduling import backfilling, clock, code_schedules, schedules
from scheduling.backfilling import Extent
from scheduling.management import output, parsing
from scheduling.management.command import LedgerCommand, add_call_options, user_name
from scheduling.models import UNFINISHED, CatchUp, Overlap, Policy, Priority, Run
from scheduling.schedules import Cron, Every, NextOccurrence, Once
from scheduling.standing import Standing, is_paused, standing, standings

POLICIES = (
    "catch_up",
    "catch_up_window",
    "overlap",
    "spread",
    "max_attempts",
    "deadline_after",
    "owner",
)
# A pause until an instant lasts over what is due then.
TICK = timedelta(microseconds=1)
EDGES = 3  # occurrences shown from either end of a backfill
CLOCK_CHANGES = {
    "shifted": "{missing} is jumped over by the clocks: the first instant after",
    "repeated": "second pass: the clocks were turned back",
    "skipped": "nothing runs for {missing}, which the clocks jump over",
}


class Command(LedgerCommand):
    """One subcommand for each thing that users do to schedules."""

    help = "Add, list, preview, pause, resume and remove schedules."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
        add = self.add_action(actions, "add", self.add, "make a schedule")
        listing = self.add_action(actions, "list", self.list, "show all schedules")
        following = self.add_action(actions, "next", self.next, "show the occurrences to come")
        pause = self.add_action(actions, "pause", self.pause, "let nothing come due any more")
        resume = self.add_action(actions, "resume", self.resume, "end a pause")
        remove = self.add_action(actions, "remove", self.remove, "delete; the runs it made stay")
        self.add_action(actions, "sync", self.sync, "write the schedules of CELERY_BEAT_SCHEDULE")
        backfill = self.add_action(actions, "backfill", self.backfill, "run what has passed")
        for parser in (add, following, pause, resume, remove, backfill):
            parser.add_argument("name", metavar="NAME")
        for parser in (listing, following, backfill):
            parser.add_argument("--json", action="store_true")
        add.add_argument("task", metavar="TASK", help="a registered task, as app.tasks.name")
        _add_rule_options(add)
        add_call_options(add)
        _add_policy_options(add)
        following.add_argument("-n", type=parsing.count, default=10, metavar="N", dest="number")
        following.add_argument("--from", type=parsing.moment, metavar="ISO", dest="after")
        pause.add_argument("--until", type=parsing.moment_or_duration, metavar="ISO|DURATION")
        pause.add_argument("--reason", default="", metavar="TEXT")
        _add_backfill_options(backfill)

    def handle(self, *args: Any, **options: Any) -> None:
        options["act"](options, clock.now())

    def add(self, options: dict[str, Any], now: datetime) -> None:
        """Make a schedule and say when it comes first."""
        policy = {name: options[name] for name in POLICIES if options[name] is not None}
        priority = options["priority"]
        schedule = schedules.add(
            options["name"],
            options["task"],
            self._rule(options, now),
            by=user_name(),
            args=options["task_args"],
            kwargs=options["task_kwargs"],
            priority=priority and Priority[priority.upper()],
            queue=options["queue"],
            start=self.instant(options["start"]),
            description=options["description"],
            now=now,
            **policy,
        )
        where = standing(schedules.named(schedule.name))
        self.say(f"added {schedule.name!r}: {where.rule}, next {_next(where, now)}")

    def list(self, options: dict[str, Any], now: datetime) -> None:
        """Print every schedule, as they are read."""
        found = standings()
        if options["json"]:
            self.say_lines(output.json_array(map(output.schedule_json, found)))
            return
        first = next(found, None)
        if first is None:
            self.say("No schedules yet. To make one: manage.py schedule add NAME TASK --every 5m")
            return
        rows = (row for each in _chained(first, found) for row in _rows(each, now))
        head = ("NAME", "TASK", "RULE", "NEXT", "LAST")
        self.say_lines(output.table(head, rows, flexible=(0, 1, 2)))
        self.say(f"Times are in {settings.TIME_ZONE}; a rule's own zone stands beside it.")

    def next(self, options: dict[str, Any], now: datetime) -> None:
        """Print the occurrences to come."""
        schedule = schedules.named(options["name"])
        after = self.instant(options["after"]) or now
        found = schedules.next_occurrences(schedule, options["number"], after)
        where = standing(schedule)
        if found and (warning := _will_not_run(where, now)):
            self.note(warning)
        if options["json"]:
            self.say_lines(output.json_array(map(output.occurrence_json, found)))
        elif found:
            rows = [_occurrence_row(occurrence, where.policy, now) for occurrence in found]
            self.say_lines(output.table(("DUE", "FROM NOW", "STARTS", "NOTE"), rows))
        else:
            self.say(f"{schedule.name!r} has no occurrence after {output.full_clock(after, now)}.")

    def pause(self, options: dict[str, Any], now: datetime) -> None:
        """Pause a schedule; the last word on its end and its reason counts."""
        schedule, until = schedules.named(options["name"]), self.limit(options["until"], now)
        reason = options["reason"]
        began = schedules.pause(schedule, by=user_name(), until=until, reason=reason, now=now)
        end = f"until {output.full_clock(until, now)}" if until else "until it is resumed"
        if not began:
            self.note(f"{schedule.name!r} was paused already: its end and reason were replaced.")
        self.say(f"paused {schedule.name!r} {end}")

    def resume(self, options: dict[str, Any], now: datetime) -> None:
        """Resume a schedule and say when it comes next."""
        schedule = schedules.named(options["name"])
        if not schedules.resume(schedule, by=user_name(), now=now):
            self.note(f"{schedule.name!r} was not paused: nothing was changed.")
            return
        where = standing(schedules.named(schedule.name))
        self.say(f"resumed {schedule.name!r}, next {_next(where, now)}")

    def backfill(self, options: dict[str, Any], now: datetime) -> None:
        """Say what a backfill would run, and start it unless this is a dry run."""
        schedule = schedules.named(options["name"])
        since = self.instant(options["since"]) or now
        until = self.instant(options["until"]) or now
        again, started = options["again"], None
        found = backfilling.extent(schedule, since, until, again=again, now=now)
        if not options["dry_run"]:
            limits = {"concurrency": options["concurrency"], "again": again}
            started = backfilling.start(schedule, since, until, by=user_name(), now=now, **limits)
        if options["json"]:
            self.say_lines(output.json_lines(output.extent_json(schedule.name, found, started)))
            return
        self.say_lines(_extent_lines(schedule.name, found, now))
        if started is None:
            self.say("Nothing was written. Without --dry-run they run, one after the other.")
        else:
            self.say(f"started backfill {started.pk}: {started.concurrency} at a time")

    def remove(self, options: dict[str, Any], now: datetime) -> None:
        """Remove a schedule and say what becomes of the runs it has made."""
        schedule = schedules.named(options["name"])
        schedules.remove(schedule, by=user_name())
        self.say(f"removed {schedule.name!r}; the runs it made stay in the ledger")
        own = Run.objects.filter(schedule_id=schedule.pk, backfill_id=None)
        unfinished = own.filter(state__in=UNFINISHED).count()
        if unfinished:
            self.note(f"unfinished runs that go on: {unfinished} (`run cancel ID` ends one).")

    def sync(self, options: dict[str, Any], now: datetime) -> None:
        """Write the code's schedules and print what changed."""
        lines = list(code_schedules.sync())
        self.say_lines(lines or ["The schedules are as CELERY_BEAT_SCHEDULE says."])

    def _rule(self, options: dict[str, Any], now: datetime) -> Cron | Every | Once:
        """Return the rule that was asked for; exactly one option names it."""
        if options["timezone"] is not None and options["cron"] is None:
            self.refuse("--timezone goes with --cron only.")
        if options["start"] and options["cron"] is None and options["every"] is None:
            self.refuse("--start goes with --cron and --every only.")
        if options["cron"] is not None:
            zone = options["timezone"]
            return Cron(options["cron"], settings.TIME_ZONE if zone is None else zone)
        if options["every"] is not None:
            return Every(options["every"])
        if options["delay"] is not None:
            return Once(now + options["delay"])
        return Once(self.instant(options["at"]) or now)


def _add_rule_options(parser: ArgumentParser) -> None:
    rule = parser.add_mutually_exclusive_group(required=True)
    rule.add_argument("--cron", metavar='"m h dom mon dow"', help="both day fields must match")
    rule.add_argument("--every", type=parsing.duration, metavar="DURATION", help="90s 15m 2h 3d")
    rule.add_argument("--at", type=parsing.moment, metavar="ISO", help="once, then")
    rule.add_argument(
        "--in", type=parsing.duration, metavar="DURATION", dest="delay", help="once, so much later"
    )
    parser.add_argument("--timezone", metavar="TZ", help="of --cron, by default TIME_ZONE")
    parser.add_argument(
        "--start",
        type=parsing.moment,
        metavar="ISO",
        help="the first is not before this",
    )
    parser.add_argument("--description", default="", metavar="TEXT")


def _add_policy_options(parser: ArgumentParser) -> None:
    parser.add_argument("--catch-up", choices=CatchUp.values, help="for what was missed")
    parser.add_argument(
        "--catch-up-window", type=parsing.duration, metavar="DURATION", help="how far back"
    )
    parser.add_argument(
        "--overlap", choices=Overlap.values, help="while an earlier run is unfinished"
    )
    parser.add_argument(
        "--spread", type=parsing.duration, metavar="DURATION", help="start up to this much later"
    )
    parser.add_argument(
        "--deadline-after", type=parsing.duration, metavar="DURATION", help="counted from due"
    )
    parser.add_argument("--owner", metavar="TEXT", help="who to ask about it")


def _add_backfill_options(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--from", type=parsing.moment, metavar="ISO", dest="since", required=True,
        help="the first instant, included",
    )  # fmt: skip
    parser.add_argument(
        "--to", type=parsing.moment, metavar="ISO", dest="until", required=True,
        help="the last instant, included",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="say what would run")
    parser.add_argument(
        "--again", action="store_true", help="also what has succeeded, or may still"
    )
    parser.add_argument(
        "--concurrency", type=parsing.count, default=1, metavar="N", help="at once, by default 1"
    )


def _extent_lines(name: str, extent: Extent, now: datetime) -> Iterator[str]:
    """Yield how many occurrences a backfill runs and which: the first and the last few."""
    instants = extent.instants
    yield output.printable(f"{name!r} has {len(instants):,} occurrences to run in that range")
    if extent.done:
        yield f"left out: {extent.done:,} with a run that succeeded or is unfinished (see --again)"
    if extent.pending:
        yield f"left to beat: {extent.pending:,} that are due and not fired yet"
    few = EDGES if len(instants) > 2 * EDGES + 1 else len(instants)
    yield from (f"  {output.full_clock(instant, now)}" for instant in instants[:few])
    if few < len(instants):
        yield f"  ... {len(instants) - 2 * few:,} more ..."
        yield from (f"  {output.full_clock(instant, now)}" for instant in instants[-few:])


def _chained(first: Standing, rest: Iterator[Standing]) -> Iterator[Standing]:
    yield first
    yield from rest


def _rows(standing: Standing, now: datetime) -> Iterator[tuple[str, ...] | str]:
    """Yield a schedule's row and, where it will not run, a line below that says why."""
    zone = f" {standing.timezone}" if standing.timezone else ""
    yield (
        standing.schedule.name,
        standing.schedule.task,
        "once" if standing.schedule.clocked else f"{standing.rule}{zone}",
        _state(standing, now) or output.clock(standing.next_due_at, now),
        output.clock(standing.last_due_at, now),
    )
    if (standing.problem or standing.policy.pause_reason) and (
        warning := _will_not_run(standing, now)
    ):
        yield f"  {warning}"


def _state(standing: Standing, now: datetime) -> str:
    """Return in a word why a schedule will not run, or "" if it will."""
    if standing.problem:
        return "broken"
    if not standing.schedule.enabled:
        return "done" if standing.schedule.one_off and standing.last_due_at else "disabled"
    if is_paused(standing.policy, now):
        return "paused"
    return "" if standing.next_due_at else "never again"


def _will_not_run(standing: Standing, now: datetime) -> str:
    """Return why the occurrences of a schedule will not run, or "" if they will."""
    policy, state = standing.policy, _state(standing, now)
    if state == "broken":
        return f"broken: {standing.problem}"
    if state == "paused":
        until = policy.paused_until
        end = f"until {output.full_clock(until, now)}" if until else "until it is resumed"
        reason = f": {policy.pause_reason}" if policy.pause_reason else ""
        return f"paused by {policy.paused_by or 'somebody'} {end}{reason}"
    return f"{state}: none of these will run" if state in ("done", "disabled") else ""


def _next(standing: Standing, now: datetime) -> str:
    return _state(standing, now) or output.full_clock(standing.next_due_at, now)


def _occurrence_row(occurrence: NextOccurrence, policy: Policy, now: datetime) -> tuple[str, ...]:
    local, missing = occurrence.local, occurrence.missing
    notes = CLOCK_CHANGES.get(occurrence.dst, "").format(
        missing=missing and f"{missing:%Y-%m-%d %H:%M}"
    )
    late = occurrence.run_at != occurrence.due_at
    return (
        f"{local:%a %Y-%m-%d %H:%M:%S} {local.tzname()}",
        output.distance(occurrence.due_at, now),
        f"{timezone.localtime(occurrence.run_at):%H:%M:%S}" if late else "when due",
        "paused" if is_paused(policy, max(occurrence.due_at, now) - TICK) else notes,
    )
