"""`manage.py enqueue`: write one run into the ledger and, if asked, wait for its end."""

import math
import sys
import time
from argparse import ArgumentParser
from datetime import datetime, timedelta
from typing import Any

from django.db import OperationalError, connection

from scheduling import clock
from scheduling.management import parsing
from scheduling.management.command import (
    LedgerCommand,
    add_call_options,
    database_problem,
    one_line,
    user_name,
)
from scheduling.management.output import full_clock
from scheduling.models import FINAL, Run, State
from scheduling.runs.enqueueing import enqueue
from scheduling.runs.outcomes import errors_of

# Seconds between two looks at the state of a run that --wait waits for.
FIRST_LOOK = 0.05
SLOWEST_LOOK = 0.5

NOT_SUCCEEDED = 1
TIME_IS_UP = 3


class Command(LedgerCommand):
    """Prints the run's id, alone on the first line; --wait adds the state it ended in."""

    help = (
        "Enqueue a job. The first line of the output is the run's id. With --wait, the second is"
        " the state it ended in, and the exit code is 0 for succeeded, 1 for another end, 3 when"
        " the time is up."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("task", metavar="TASK", help="a registered task, as app.tasks.name")
        add_call_options(parser)
        start = parser.add_mutually_exclusive_group()
        start.add_argument(
            "--at", type=parsing.moment, metavar="ISO", help="start then (TIME_ZONE if no offset)"
        )
        start.add_argument(
            "--in", dest="delay", type=parsing.duration, metavar="DURATION", help="90s 15m 2h 3d 1w"
        )
        for option, text in (
            ("--deadline", "when the run should have started"),
            ("--expires", "after this the run does not start"),
        ):
            parser.add_argument(
                option, type=parsing.moment_or_duration, metavar="ISO|DURATION", help=text
            )
        parser.add_argument(
            "--unique-key", metavar="K", help="at most one unfinished run has this key"
        )
        parser.add_argument(
            "--wait",
            nargs="?",
            type=parsing.seconds,
            const=math.inf,
            metavar="SECONDS",
            help="wait for the run to end; without SECONDS, for as long as it takes",
        )

    def handle(self, *args: Any, **options: Any) -> None:
        """Check, write the run, print its id, and wait."""
        now = clock.now()
        at, after = self.instant(options["at"]), options["delay"]
        limits = {name: self.limit(options[name], now) for name in ("deadline", "expires")}
        self._check_limits(limits, max(now, at or now + (after or timedelta(0))), now)
        run = enqueue(
            options["task"],
            options["task_args"],
            options["task_kwargs"],
            at=at,
            after=after,
            priority=options["priority"],
            queue=options["queue"],
            unique_key=options["unique_key"],
            max_attempts=options["max_attempts"],
            enqueued_by=user_name(),
            deadline=limits["deadline"],
            expires=limits["expires"],
        )
        self.say(str(run.id))
        # A reader of a pipe wants the id now, not at the end of the run.
        self.stdout.flush()
        if not run.created:
            self.note(f"run {run.id} has this key and is {run.state}: no run was added.")
        elif at is not None and at <= now:
            self.note(f"{full_clock(at, now)} is in the past: it runs at once.")
        if options["wait"] is not None:
            try:
                sys.exit(self._wait(run, options["wait"]))
            except KeyboardInterrupt:
                self.note(f"stopped waiting: run {run.id} goes on.")
                raise

    def _check_limits(
        self, limits: dict[str, datetime | None], start: datetime, now: datetime
    ) -> None:
        """Refuse a limit that is over before the run may start."""
        for name, limit in limits.items():
            if limit is not None and limit <= start:
                self.refuse(
                    f"--{name} {full_clock(limit, now)} is not after the start,"
                    f" {full_clock(start, now)}: the run could never start."
                )

    def _wait(self, run: Run, seconds: float) -> int:
        """Print the state that the run ends in and return the exit code."""
        began, pause, reported = time.monotonic(), FIRST_LOOK, False
        while True:
            try:
                found = Run.objects.only("state", "reason", "errors").filter(pk=run.pk).first()
            except OperationalError as error:
                # The run is in the ledger: a restart of Postgres only delays the answer.
                connection.close()
                if not reported:
                    self.note(one_line(f"{database_problem(error)} (still waiting)"))
                found, reported = run, True
            if found is None:
                self.refuse(f"run {run.id} is no longer in the ledger.")
            if found.state in FINAL:
                return self._ended(found)
            left = seconds - (time.monotonic() - began)
            if left <= 0:
                self.note(f"the time is up: run {run.id} is {found.state}, and goes on.")
                return TIME_IS_UP
            time.sleep(min(pause, left))
            pause = min(pause * 1.5, SLOWEST_LOOK)

    def _ended(self, run: Run) -> int:
        self.say(run.state)
        if run.state == State.SUCCEEDED:
            return 0
        why = run.reason or "".join(str(error.get("error", "")) for error in errors_of(run)[-1:])
        if why:
            self.note(one_line(why))
        return NOT_SUCCEEDED
