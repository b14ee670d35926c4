"""`manage.py backfill`: look at backfills, and cancel one; `schedule backfill` starts one."""

from argparse import ArgumentParser
from datetime import datetime
from typing import Any

from django.conf import settings

from scheduling import clock, shapes
from scheduling.history import backfilling
from scheduling.management import output, parsing
from scheduling.management.command import LedgerCommand, user_name
from scheduling.models import Backfill, State


class Command(LedgerCommand):
    """One subcommand for each thing that users do to backfills."""

    help = "List, show and cancel backfills; `schedule backfill NAME` starts one."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
        listing = self.add_action(actions, "list", self.list, "show backfills, newest first")
        show = self.add_action(actions, "show", self.show, "show one backfill and its progress")
        cancel = self.add_action(
            actions, "cancel", self.cancel, "cancel its waiting runs, stop its running ones"
        )
        listing.add_argument("--limit", type=parsing.count, default=20, metavar="N")
        for parser in (show, cancel):
            parser.add_argument("id", type=parsing.run_id, metavar="ID")
        for parser in (listing, show):
            parser.add_argument("--json", action="store_true")

    def handle(self, *args: Any, **options: Any) -> None:
        options["act"](options, clock.now())

    def list(self, options: dict[str, Any], now: datetime) -> None:
        """Print the newest backfills and their progress."""
        found = [
            (backfill, backfilling.progress(backfill))
            for backfill in Backfill.objects.order_by("-pk")[: options["limit"]]
        ]
        if options["json"]:
            self.say_lines(
                output.json_array(
                    shapes.backfill(backfill, progress.states) for backfill, progress in found
                )
            )
        elif found:
            head = ("ID", "SCHEDULE", "FROM", "RUNS", "LEFT", "STATE")
            rows = (
                (
                    str(backfill.pk),
                    backfill.schedule_name,
                    output.clock(backfill.since, now),
                    str(backfill.run_count),
                    str(progress.unfinished),
                    backfilling.standing(backfill, progress),
                )
                for backfill, progress in found
            )
            self.say_lines(output.table(head, rows, flexible=(1,)))
            self.say(f"Times are in {settings.TIME_ZONE}.")
        else:
            self.say("No backfills. `schedule backfill NAME --from ISO --to ISO` starts one.")

    def show(self, options: dict[str, Any], now: datetime) -> None:
        """Print one backfill."""
        backfill = backfilling.with_id(options["id"])
        progress = backfilling.progress(backfill)
        if options["json"]:
            self.say_lines(output.json_lines(shapes.backfill(backfill, progress.states)))
            return
        self.say(f"Backfill {backfill.pk} of {output.printable(backfill.schedule_name)!r}")
        asked = output.full_clock(backfill.created_at, now)
        facts = (
            ("from", output.full_clock(backfill.since, now)),
            ("to", output.full_clock(backfill.until, now)),
            ("runs", f"{backfill.run_count}, {backfill.concurrency} at a time"),
            ("state", backfilling.standing(backfill, progress)),
            ("its runs", str(progress)),
            ("cancelled", f"by {backfill.cancelled_by}" if backfill.cancelled_at else ""),
            ("asked for", f"{asked} by {backfill.created_by}"),
        )
        for label, value in facts:
            if value:
                self.say(f"  {label:<11}{output.printable(value)}")

    def cancel(self, options: dict[str, Any], now: datetime) -> None:
        """Cancel a backfill and print the effect."""
        left = backfilling.cancel(options["id"], by=user_name())
        self.say(f"cancelled backfill {options['id']}: {left}")
        if running := left.states.get(State.RUNNING, 0):
            self.note(f"{running} of its runs are running: their workers were asked to stop them.")
