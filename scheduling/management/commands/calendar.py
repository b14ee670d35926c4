"""`manage.py calendar`: add, list, show and remove named calendars of days off."""

from argparse import ArgumentParser
from datetime import datetime
from typing import Any

from django.db.models import Count
from django.utils import timezone

from scheduling import clock, recurrence, shapes
from scheduling.errors import CalendarError
from scheduling.management import output, parsing
from scheduling.management.command import LedgerCommand, user_name
from scheduling.models import Calendar
from scheduling.schedules import calendars


class Command(LedgerCommand):
    """One subcommand for each thing that users do to calendars."""

    help = "Add, list, show and remove calendars; `schedule add --calendar NAME` follows one."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
        add = self.add_action(actions, "add", self.add, "make a calendar")
        listing = self.add_action(actions, "list", self.list, "show all calendars")
        show = self.add_action(
            actions, "show", self.show, "show one calendar, and its days off in a year"
        )
        remove = self.add_action(
            actions, "remove", self.remove, "delete a calendar that no schedule follows"
        )
        for parser in (add, show, remove):
            parser.add_argument("name", metavar="NAME")
        for parser in (listing, show):
            parser.add_argument("--json", action="store_true")
        add.add_argument(
            "--weekdays", type=parsing.weekdays, default=[], metavar="DAYS", help="sat,sun"
        )
        add.add_argument(
            "--country", default="", metavar="CODE", help="the public holidays of a country: DE"
        )
        add.add_argument(
            "--subdivision", default="", metavar="CODE", help="and of a part of it: BY"
        )
        add.add_argument(
            "--date", type=parsing.dated, action="append", default=[], dest="dates",
            metavar="ISO[=REASON]", help="a single day; can be given again",
        )  # fmt: skip
        add.add_argument("--description", default="", metavar="TEXT")
        show.add_argument("--year", type=parsing.year, metavar="YYYY", help="by default this one")

    def handle(self, *args: Any, **options: Any) -> None:
        options["act"](options, clock.now())

    def add(self, options: dict[str, Any], now: datetime) -> None:
        """Make a calendar and print its days off."""
        if options["subdivision"] and not options["country"]:
            self.refuse("--subdivision goes with --country only.")
        calendar = calendars.add(
            options["name"],
            by=user_name(),
            weekdays=options["weekdays"],
            country=options["country"],
            subdivision=options["subdivision"],
            dates=dict(options["dates"]),
            description=options["description"],
        )
        self.say(f"added {calendar.name!r}: {output.days_off_words(calendar)}")

    def list(self, options: dict[str, Any], now: datetime) -> None:
        """Print all calendars."""
        found = Calendar.objects.order_by("name").prefetch_related("dates")
        if options["json"]:
            self.say_lines(output.json_array(map(shapes.calendar, found)))
            return
        rows = [
            (calendar.name, output.days_off_words(calendar), str(calendar.users))
            for calendar in found.annotate(users=Count("policies"))
        ]
        if rows:
            self.say_lines(output.table(("NAME", "DAYS OFF", "SCHEDULES"), rows, flexible=(0, 1)))
        else:
            self.say("No calendars yet. To make one: manage.py calendar add NAME --country DE")

    def show(self, options: dict[str, Any], now: datetime) -> None:
        """Print a calendar, and its days off in a year."""
        calendar = calendars.named(options["name"])
        year = options["year"] or timezone.localtime(now).year
        try:
            days = list(calendars.days_off_of(calendar).days_of(year))
        except recurrence.RecurrenceError as error:
            raise CalendarError(f"calendar {calendar.name!r}: {error}") from error
        if options["json"]:
            off = [{"date": day.isoformat(), "reason": why} for day, why in days]
            value = {**shapes.calendar(calendar), "year": year, "days_off": off}
            self.say_lines(output.json_lines(value))
            return
        self.say(output.printable(f"Calendar {calendar.name!r}: {output.days_off_words(calendar)}"))
        if calendar.description:
            self.say_lines(output.printable_lines(calendar.description))
        self.say(f"Followed by {calendar.policies.count()} schedules. Off in {year}, by date:")
        for day, why in days:
            self.say(output.printable(f"  {day:%a %Y-%m-%d}  {why}"))
        if not days:
            self.say("  none")

    def remove(self, options: dict[str, Any], now: datetime) -> None:
        """Remove a calendar that no schedule follows."""
        calendar = calendars.named(options["name"])
        calendars.remove(calendar, by=user_name())
        self.say(f"removed {calendar.name!r}")
