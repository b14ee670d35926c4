"""`manage.py run`: look at runs, cancel them, replay them, delete old ones."""

from argparse import ArgumentParser
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.utils import timezone

from scheduling import clock, schedules, shapes
from scheduling.execution.cancelling import cancel
from scheduling.history import pruning, replaying
from scheduling.history.selecting import Selection
from scheduling.management import output, parsing
from scheduling.management.command import LedgerCommand, user_name
from scheduling.models import FINAL, Run, State
from scheduling.postgres.sql import shortened
from scheduling.registry import attempts_allowed
from scheduling.runs import follow_ups
from scheduling.runs.outcomes import errors_of

# Columns that can be large and that a table does not show.
UNSHOWN = ("args", "kwargs", "options", "errors", "follow_ups")
ARGUMENTS_SHOWN = 2000  # characters
FINAL_STATES = [state.value for state in FINAL]


class Command(LedgerCommand):
    """One subcommand for each thing that users do to runs."""

    help = "List, show, cancel and replay runs; delete old ones."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
        listing = self.add_action(actions, "list", self.list, "show runs, newest first")
        show = self.add_action(
            actions, "show", self.show, "show everything about one run, with its errors"
        )
        cancel = self.add_action(
            actions, "cancel", self.cancel, "cancel a waiting run, or stop a running one"
        )
        replay = self.add_action(
            actions, "replay", self.replay, "run the job of a finished run again, or of many runs"
        )
        prune = self.add_action(actions, "prune", self.prune, "delete old finished runs")
        listing.add_argument("--state", choices=State.values)
        replay.add_argument("--state", choices=FINAL_STATES, help="failed, unless given")
        prune.add_argument("--state", choices=FINAL_STATES)
        for parser, most in ((listing, 50), (replay, 1000)):
            _add_selection(parser)
            parser.add_argument("--limit", type=parsing.count, default=most, metavar="N")
        replay.add_argument("id", type=parsing.run_id, nargs="?", metavar="ID")
        replay.add_argument(
            "--again", action="store_true", help="also runs that have already been replayed"
        )
        replay.add_argument(
            "--follow-ups",
            dest="sent_too",
            action="store_true",
            help="also repeat follow-ups of a run that has succeeded: links, its chain",
        )
        prune.add_argument(
            "--older-than",
            type=parsing.duration,
            metavar="DURATION",
            help="time since their end, as 30d; by default KEEP_RUNS_DAYS and KEEP_FAILED_DAYS",
        )
        for parser in (replay, prune):
            parser.add_argument("--dry-run", action="store_true", help="only print how many")
        for parser in (show, cancel):
            parser.add_argument("id", type=parsing.run_id, metavar="ID")
        for parser in (listing, show):
            parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        options["act"](options, clock.now())

    def list(self, options: dict[str, Any], now: datetime) -> None:
        """Print the newest runs."""
        selection, schedule = self._selection(options, now), options["schedule"]
        unshown = () if options["json"] else UNSHOWN
        found = list(selection.newest(options["limit"] + 1, *unshown))
        shown = found[: options["limit"]]
        if not found and schedule is not None:
            schedules.named(schedule)  # a mistyped name is an error, not an empty list
        if options["json"]:
            self.say_lines(output.json_array(map(shapes.run, shown)))
        elif shown:
            head = ("ID", "STATE", "DUE", "TRY", "SCHEDULE OR TASK")
            rows = (_row(run, now) for run in shown)
            self.say_lines(output.table(head, rows, flexible=(4,)))
            more = f" The newest {len(shown)}: --limit N shows more." if found[len(shown) :] else ""
            self.say(f"Times are in {settings.TIME_ZONE}.{more}")
        else:
            self.say(_nothing(selection))

    def show(self, options: dict[str, Any], now: datetime) -> None:
        """Print one run."""
        run = self._run(options)
        if options["json"]:
            self.say_lines(output.json_lines(shapes.run(run)))
            return
        self.say_lines(_details(run, now))
        for error in errors_of(run):
            self.say_lines(_error_lines(error, now))

    def cancel(self, options: dict[str, Any], now: datetime) -> None:
        """Cancel a run and print the effect."""
        run = cancel(options["id"], by=user_name())
        if run.state in FINAL:
            self.say(f"cancelled {run.id}: it had not started")
        else:
            self.say(f"asked the worker {run.worker or '?'} to stop {run.id}, which is running")

    def replay(self, options: dict[str, Any], now: datetime) -> None:
        """Enqueue the job of a finished run again, or of every selected run."""
        selection = self._selection(options, now)
        if (options["id"] is None) != bool(selection):
            self.refuse(
                "give the ID of a run, or select runs: --state, --schedule, --task, --since."
            )
        if options["id"] is None:
            self._replay_all(replace(selection, state=selection.state or State.FAILED), options)
        elif options["dry_run"]:
            self.refuse("--dry-run goes with a selection of runs, not with an ID.")
        else:
            sent_too = options["sent_too"]
            new = replaying.replay(options["id"], by=user_name(), sent_too=sent_too)
            self.say(str(new.id))
            for left_out in new.left_out:
                self.note(f"not set off again: {left_out}.")

    def _replay_all(self, selection: Selection, options: dict[str, Any]) -> None:
        found = replaying.find(selection.runs())
        if not found.runs and selection.schedule is not None:
            schedules.named(selection.schedule)  # as in `list`
        wanted = found.runs if options["again"] else found.runs - found.replayed
        if found.replayed:
            does = "replayed once more" if options["again"] else "left out (--again includes them)"
            self.note(f"{found.replayed:,} of them have already been replayed: {does}.")
        now_at_once = min(wanted, options["limit"])
        if options["dry_run"]:
            due = f", due {_span(found.first_due, found.last_due)}" if found.runs else ""
            self.say(f"would replay {_runs(now_at_once)}: {_described(selection)}{due}")
        else:
            done = replaying.replay_all(
                selection.runs(),
                by=user_name(),
                limit=options["limit"],
                again=options["again"],
                sent_too=options["sent_too"],
            )
            self.say(f"replayed {_runs(done.made)}: {_described(selection)}")
            if done.tried > done.made:
                self.note(
                    f"{_runs(done.tried - done.made)} left out: another user has just replayed"
                    " them, or an unfinished run has the same unique key."
                )
            if done.parts:
                self.note(
                    f"{_runs(done.parts)} are parts of chords: a chord counts each part once."
                )
        if wanted > now_at_once:
            self.note(f"{_runs(wanted - now_at_once)} more: --limit N takes more at once.")

    def prune(self, options: dict[str, Any], now: datetime) -> None:
        """Delete finished runs that are old, with their results."""
        periods = pruning.kept_for()
        if options["older_than"] is not None:
            periods = dict.fromkeys(FINAL, options["older_than"])
        if options["state"] is not None:
            state = State(options["state"])
            periods = {state: periods[state]} if state in periods else {}
        if not periods:
            self.refuse(
                "KEEP_RUNS_DAYS and KEEP_FAILED_DAYS keep these runs for ever: give --older-than,"
                " as 30d."
            )
        if options["dry_run"]:
            does, counts = "would delete", pruning.count_old(now, periods)
        else:
            does, counts = "deleted", pruning.prune(now, periods)
        parts = ", ".join(f"{count:,} {state}" for state, count in counts.items())
        self.say(f"{does} {_runs(counts.total())}{f': {parts}' if parts else ''}")

    def _selection(self, options: dict[str, Any], now: datetime) -> Selection:
        since, until = (self._back(options[name], now) for name in ("since", "until"))
        if since is not None and until is not None and since >= until:
            self.refuse(
                f"--since {output.full_clock(since, now)} is not before --until"
                f" {output.full_clock(until, now)}: no run is due then."
            )
        state = State(options["state"]) if options["state"] else None
        return Selection(state, options["schedule"], options["task"], since, until)

    def _back(self, value: parsing.Moment | timedelta | None, now: datetime) -> datetime | None:
        return now - value if isinstance(value, timedelta) else self.instant(value)

    def _run(self, options: dict[str, Any]) -> Run:
        run = Run.objects.filter(pk=options["id"]).first()
        if run is None:
            self.refuse(f"no run has the id {options['id']}: `run list` shows the newest.")
        return run


def _add_selection(parser: ArgumentParser) -> None:
    parser.add_argument("--schedule", metavar="NAME")
    parser.add_argument("--task", metavar="TASK")
    for option, text in (("--since", "due then or later"), ("--until", "due before")):
        parser.add_argument(
            option, type=parsing.moment_or_duration, metavar="ISO|DURATION",
            help=f"{text}; a duration counts back from now",
        )  # fmt: skip


def _described(selection: Selection) -> str:
    """Return the selected runs in words: `failed, of schedule 'nightly'`."""
    words = [selection.state.value] if selection.state else []
    if selection.schedule is not None:
        words.append(f"of schedule {selection.schedule!r}")
    if selection.task is not None:
        words.append(f"of task {selection.task!r}")
    return ", ".join(words) or "all"


def _nothing(selection: Selection) -> str:
    if not selection:
        return "No runs. To make one: manage.py enqueue TASK"
    state = f" {selection.state}" if selection.state else ""
    of = f" of schedule {selection.schedule!r}" if selection.schedule else ""
    task = f" of task {selection.task!r}" if selection.task else ""
    return f"No{state} runs{of}{task}{' then' if selection.since or selection.until else ''}."


def _runs(count: int) -> str:
    return f"{count:,} run{'' if count == 1 else 's'}"


def _span(first: datetime | None, last: datetime | None) -> str:
    return " to ".join(f"{timezone.localtime(at):%Y-%m-%d %H:%M}" for at in (first, last) if at)


def _row(run: Run, now: datetime) -> tuple[str, ...]:
    return (
        str(run.id),
        run.state,
        output.clock(run.due_at, now),
        f"{run.attempt}",
        run.schedule_name or run.task,
    )


def _details(run: Run, now: datetime) -> Iterator[str]:
    """Yield the facts of a run, a line each; empty ones are left out."""
    allowed = attempts_allowed(run.task, run.max_attempts)
    missed = f" (stands for {run.coalesced} more that were missed)" if run.coalesced else ""
    facts = (
        ("state", f"{run.state}: {run.reason}" if run.reason else run.state),
        ("task", run.task),
        ("arguments", _call(run)),
        ("schedule", run.schedule_name),
        ("origin", run.get_origin_display() + (f" of {run.replay_of}" if run.replay_of else "")),
        ("backfill", str(run.backfill_id or "")),
        ("enqueued by", run.enqueued_by),
        ("sets off", follow_ups.in_words(run.follow_ups)),
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
        ("cancel", f"requested by {run.cancel_requested_by}" if run.cancel_requested_by else ""),
    )
    yield f"Run {run.id}"
    for label, value in facts:
        if value:
            yield f"  {label:<13}{output.printable(value)}"


def _call(run: Run) -> str:
    texts = (text for text, empty in ((run.args, "[]"), (run.kwargs, "{}")) if text != empty)
    return " ".join(shortened(text, ARGUMENTS_SHOWN) for text in texts)


def _when(at: datetime | None, now: datetime) -> str:
    return output.full_clock(at, now) if at else ""


def _deadline(run: Run, now: datetime) -> str:
    missed = "" if run.late_by is None else f", missed by {output.length(run.late_by)}"
    return f"{_when(run.deadline, now)}{missed}"


def _error_lines(error: dict[str, Any], now: datetime) -> Iterator[str]:
    """Yield a failed attempt: its error, and the traceback that the job's process wrote."""
    began, ended = error["started_at"], error["ended_at"]
    took = f", for {output.length(ended - began)}" if began and ended else ""
    when = f"{output.full_clock(began, now)}{took}"
    yield ""
    yield output.printable(f"Attempt {error.get('attempt', '?')}, {when}: {error.get('error', '')}")
    for line in output.printable_lines(str(error.get("traceback") or "")):
        yield f"    {line}"
