"""`manage.py run`: look at runs, cancel them, replay them."""

from argparse import ArgumentParser
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db.models import QuerySet

from scheduling import clock, enqueueing, schedules, waiting
from scheduling.management import output, parsing
from scheduling.management.command import LedgerCommand, user_name
from scheduling.models import FINAL, Run, State

# Columns that can be large and that a table does not show.
UNSHOWN = ("args", "kwargs", "options", "errors")


class Command(LedgerCommand):
    """One subcommand for each thing that users do to runs."""

    help = "List, show, cancel and replay runs."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
        listing = self.add_action(actions, "list", self.list, "show runs, newest first")
        show = self.add_action(actions, "show", self.show, "show all of one run, with its errors")
        cancel = self.add_action(actions, "cancel", self.cancel, "do not start it, or stop it")
        replay = self.add_action(actions, "replay", self.replay, "run a finished one's job again")
        listing.add_argument("--state", choices=State.values)
        listing.add_argument("--schedule", metavar="NAME")
        listing.add_argument("--limit", type=parsing.count, default=50, metavar="N")
        for parser in (show, cancel, replay):
            parser.add_argument("id", type=parsing.run_id, metavar="ID")
        for parser in (listing, show):
            parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        options["act"](options, clock.now())

    def list(self, options: dict[str, Any], now: datetime) -> None:
        """Print the newest runs."""
        state, schedule = options["state"], options["schedule"]
        runs = _newest(state, schedule)[: options["limit"] + 1]
        found = list(runs if options["json"] else runs.defer(*UNSHOWN))
        shown = found[: options["limit"]]
        if not found and schedule is not None:
            schedules.named(schedule)  # a name that was mistyped is an error, not an empty list
        if options["json"]:
            self.say_lines(output.json_array(map(output.run_json, shown)))
        elif shown:
            head = ("ID", "STATE", "DUE", "TRY", "SCHEDULE OR TASK")
            rows = (_row(run, now) for run in shown)
            self.say_lines(output.table(head, rows, flexible=(4,)))
            more = f" The newest {len(shown)}: --limit N shows more." if found[len(shown) :] else ""
            self.say(f"Times are in {settings.TIME_ZONE}.{more}")
        else:
            self.say(_nothing(state, schedule))

    def show(self, options: dict[str, Any], now: datetime) -> None:
        """Print one run."""
        run = self._run(options)
        if options["json"]:
            self.say_lines(output.json_lines(output.run_json(run)))
            return
        self.say_lines(_details(run, now))
        for error in run.errors:
            self.say_lines(_error_lines(error, now))

    def cancel(self, options: dict[str, Any], now: datetime) -> None:
        """Cancel a run and say what that did."""
        run = waiting.cancel(options["id"], by=user_name())
        if run.state in FINAL:
            self.say(f"cancelled {run.id}: it had not started")
        else:
            self.say(f"asked the worker {run.worker or '?'} to stop {run.id}, which is running")

    def replay(self, options: dict[str, Any], now: datetime) -> None:
        """Enqueue a finished run's job again."""
        self.say(str(enqueueing.replay(options["id"], by=user_name()).id))

    def _run(self, options: dict[str, Any]) -> Run:
        run = Run.objects.filter(pk=options["id"]).first()
        if run is None:
            self.refuse(f"there is no run {options['id']}: `run list` shows the newest.")
        return run


def _newest(state: str | None, schedule: str | None) -> QuerySet[Run]:
    """Return the runs asked for, newest first: their ids sort by the time they were made."""
    runs = Run.objects.order_by("-id")
    if state is not None:
        runs = runs.filter(state=state)
    # By name, so that the runs of a schedule that was removed are found as well.
    return runs if schedule is None else runs.filter(schedule_name=schedule)


def _nothing(state: str | None, schedule: str | None) -> str:
    kind = f" {state}" if state else ""
    of_which = f" of schedule {schedule!r}" if schedule else ""
    hint = "" if kind or of_which else " To make one: manage.py enqueue TASK"
    return f"No{kind} runs{of_which}.{hint}"


def _row(run: Run, now: datetime) -> tuple[str, ...]:
    return (
        str(run.id),
        run.state,
        output.clock(run.due_at, now),
        f"{run.attempt}",
        run.schedule_name or run.task,
    )


def _details(run: Run, now: datetime) -> Iterator[str]:
    """Yield the lines that say what a run is and how it went; empty ones are left out."""
    allowed = output.run_json(run)["max_attempts"]
    missed = f" (also for {run.coalesced} that were missed)" if run.coalesced else ""
    facts = (
        ("state", f"{run.state}: {run.reason}" if run.reason else run.state),
        ("task", run.task),
        ("arguments", _call(run)),
        ("schedule", run.schedule_name),
        ("origin", run.get_origin_display() + (f" of {run.replay_of}" if run.replay_of else "")),
        ("asked for by", run.enqueued_by),
        ("queue", f"{run.queue}, priority {run.get_priority_display()}"),
        ("unique key", run.unique_key or ""),
        ("due", output.full_clock(run.due_at, now) + missed),
        ("may start", output.full_clock(run.run_at, now) if run.run_at != run.due_at else ""),
        ("deadline", _deadline(run, now)),
        ("expires", _when(run.expires_at, now)),
        ("queued", _when(run.queued_at, now)),
        ("started", _when(run.started_at, now)),
        ("finished", _when(run.finished_at, now)),
        ("worker", run.worker),
        ("attempt", f"{run.attempt} (failures: {run.failures} of {allowed or 'any number'})"),
        ("cancel", f"asked for by {run.cancel_requested_by}" if run.cancel_requested_by else ""),
    )
    yield f"Run {run.id}"
    for label, value in facts:
        if value:
            yield f"  {label:<13}{output.printable(value)}"


def _call(run: Run) -> str:
    return " ".join(text for text, empty in ((run.args, "[]"), (run.kwargs, "{}")) if text != empty)


def _when(at: datetime | None, now: datetime) -> str:
    return output.full_clock(at, now) if at else ""


def _deadline(run: Run, now: datetime) -> str:
    missed = "" if run.late_by is None else f", missed by {output.length(run.late_by)}"
    return f"{_when(run.deadline, now)}{missed}"


def _error_lines(error: dict[str, Any], now: datetime) -> Iterator[str]:
    """Yield a failed attempt: what it was, and the traceback as the job's process wrote it."""
    began, ended = (
        datetime.fromisoformat(error[name]) if error.get(name) else None
        for name in ("started_at", "ended_at")
    )
    took = f", for {output.length(ended - began)}" if began and ended else ""
    when = f"{output.full_clock(began, now)}{took}"
    yield ""
    yield output.printable(f"Attempt {error.get('attempt', '?')}, {when}: {error.get('error', '')}")
    for line in output.printable_lines(error.get("traceback") or ""):
        yield f"    {line}"
