"""`manage.py failures`: list failure groups, resolve and reopen them."""

from argparse import ArgumentParser
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from django.conf import settings

from scheduling import clock, shapes
from scheduling.failures import groups as failure_groups
from scheduling.management import output, parsing
from scheduling.management.command import LedgerCommand, user_name
from scheduling.models import FailureGroup

ERROR_SHOWN = 60  # characters of the last error


class Command(LedgerCommand):
    """One subcommand for each thing that users do to recurring failures."""

    help = "List recurring failures; resolve and reopen them."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
        listing = self.add_action(actions, "list", self.list, "show the open ones")
        resolve = self.add_action(actions, "resolve", self.resolve, "mark one as resolved")
        reopen = self.add_action(actions, "reopen", self.reopen, "mark one as open again")
        listing.add_argument("--all", action="store_true", help="the resolved ones too")
        listing.add_argument("--limit", type=parsing.count, default=50, metavar="N")
        listing.add_argument("--json", action="store_true")
        for parser in (resolve, reopen):
            parser.add_argument("id", type=parsing.run_id, metavar="ID")

    def handle(self, *args: Any, **options: Any) -> None:
        options["act"](options, clock.now())

    def list(self, options: dict[str, Any], now: datetime) -> None:
        """Print the failures that were seen last."""
        groups = FailureGroup.objects.order_by("-last_seen_at", "pk")
        if not options["all"]:
            groups = groups.filter(resolved_at__isnull=True)
        found = list(groups[: options["limit"]])
        if options["json"]:
            self.say_lines(output.json_array(map(shapes.failure_group, found)))
        elif found:
            head = ("ID", "TIMES", "LAST", "TASK")
            rows = (row for group in found for row in _rows(group, now))
            self.say_lines(output.table(head, rows, flexible=(3,)))
            self.say(f"Times are in {settings.TIME_ZONE}.")
        else:
            self.say("Nothing has failed." if options["all"] else "No failure is open.")

    def resolve(self, options: dict[str, Any], now: datetime) -> None:
        """Resolve one group and print the effect."""
        group = self._group(options)
        if not failure_groups.resolve([group.pk], by=user_name()):
            self.note("It is already resolved: nothing was changed.")
            return
        self.say(f"resolved {group}: its owners are notified of the next failure at once")

    def reopen(self, options: dict[str, Any], now: datetime) -> None:
        """Open one group again."""
        group = self._group(options)
        if not failure_groups.reopen([group.pk], by=user_name()):
            self.note("It is already open: nothing was changed.")
            return
        self.say(f"reopened {group}")

    def _group(self, options: dict[str, Any]) -> FailureGroup:
        group = FailureGroup.objects.filter(pk=options["id"]).first()
        if group is None:
            self.refuse(f"no failure has the id {options['id']}: `failures list --all` shows all.")
        return group


def _rows(group: FailureGroup, now: datetime) -> Iterator[tuple[str, ...] | str]:
    """Yield a group's row, and below it the last error and its place in the code."""
    last = output.clock(group.last_seen_at, now)
    yield (str(group.pk), str(group.count), last, group.task)
    where = f"  at {group.place}" if group.place else ""
    yield f"  {output.fitted(group.last_error, ERROR_SHOWN).rstrip()}{where}"
