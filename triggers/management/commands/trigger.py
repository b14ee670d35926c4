"""`manage.py trigger`: list triggers, preview and test one, resend failed runs."""

from argparse import ArgumentParser
from datetime import datetime, timedelta
from typing import Any

from django.core.exceptions import ValidationError

from scheduling import clock
from scheduling.history.replaying import find, replay_all
from scheduling.jobs import PermanentError
from scheduling.management import output, parsing
from scheduling.management.command import LedgerCommand, user_name
from triggers import delivery, resending
from triggers.models import Trigger
from triggers.placeholders import PlaceholderError


class Command(LedgerCommand):
    """One subcommand for each thing that users do to triggers."""

    help = "List triggers; preview and test one; resend failed runs."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
        self.add_action(actions, "list", self.list, "show all triggers")
        preview = self.add_action(actions, "preview", self.preview, "show the exact request")
        test = self.add_action(actions, "test", self.test, "send it now, marked as a test")
        resend = self.add_action(actions, "resend", self.resend, "send failed runs again")
        for parser in (preview, test, resend):
            parser.add_argument("name", metavar="NAME")
        for parser in (preview, test):
            parser.add_argument(
                "--args", dest="given", type=parsing.json_object, default={}, metavar="JSON",
                help='values of ${args.NAME}: {"city": "Bonn"}',
            )  # fmt: skip
        resend.add_argument(
            "--since", type=parsing.moment_or_duration, required=True, metavar="WHEN",
            help="runs that failed since: a time, or a duration such as 2d",
        )  # fmt: skip
        resend.add_argument("--limit", type=parsing.count, default=1000, metavar="N")
        resend.add_argument("--dry-run", action="store_true", help="only count them")

    def handle(self, *args: Any, **options: Any) -> None:
        try:
            options["act"](options, clock.now())
        except ValidationError as error:
            self.refuse("; ".join(error.messages))
        except (PermanentError, PlaceholderError) as error:
            self.refuse(str(error))

    def list(self, options: dict[str, Any], now: datetime) -> None:
        """Print the triggers by name."""
        head = ("NAME", "KIND", "STATE", "FAILING SINCE", "TEMPLATE")
        rows = (
            (
                trigger.name,
                trigger.kind,
                "enabled" if trigger.enabled else "disabled",
                output.clock(trigger.failing_since, now),
                trigger.template.name if trigger.template else "-",
            )
            for trigger in Trigger.objects.select_related("template").order_by("name")
        )
        self.say_lines(output.table(head, rows, flexible=(0,)))

    def preview(self, options: dict[str, Any], now: datetime) -> None:
        """Print the request, with its secrets masked."""
        self._show(delivery.preview(self._trigger(options), options["given"]))

    def test(self, options: dict[str, Any], now: datetime) -> None:
        """Send a test; print the request and the answer."""
        tried = delivery.send_test(self._trigger(options), options["given"])
        attempt = tried.attempt
        self._show(tried.request)
        self.say("")
        if attempt.status is not None:
            self.say(f"answered {attempt.status} after {attempt.milliseconds} ms")
        self.say_lines(output.printable_lines(attempt.answer_text()))
        if attempt.error:
            self.refuse(attempt.error)

    def resend(self, options: dict[str, Any], now: datetime) -> None:
        """Replay the runs of a trigger that have failed and have not been replayed yet."""
        trigger, since = self._trigger(options), options["since"]
        since = now - since if isinstance(since, timedelta) else self.instant(since) or now
        runs = resending.failed_runs(trigger.name, since)
        if options["dry_run"]:
            found = find(runs)
            self.say(f"would resend {found.runs - found.replayed} failed runs of {trigger.name}")
            return
        made = replay_all(runs, by=user_name(), limit=options["limit"]).made
        self.say(f"resends {made} failed runs of {trigger.name}")

    def _trigger(self, options: dict[str, Any]) -> Trigger:
        found = Trigger.objects.select_related("template").filter(name=options["name"]).first()
        if found is None:
            self.refuse(
                f"the trigger {options['name']!r} does not exist: `trigger list` shows them."
            )
        return found

    def _show(self, request: Any) -> None:
        self.say_lines(output.printable(line) for line in delivery.shown(request))
