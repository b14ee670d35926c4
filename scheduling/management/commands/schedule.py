"""`manage.py schedule`: add, edit, list, preview, pause, resume, remove and backfill schedules."""

from argparse import ArgumentParser
from collections.abc import Callable, Iterator
from datetime import datetime
from itertools import chain
from typing import Any

from django.conf import settings
from django_celery_beat.models import PeriodicTask

from scheduling import clock, schedules, shapes
from scheduling.history import backfilling
from scheduling.management import output, parsing, schedule_options
from scheduling.management import schedule_words as words
from scheduling.management.command import LedgerCommand, add_call_options, user_name
from scheduling.models import UNFINISHED, Priority, Run
from scheduling.registry import encode
from scheduling.schedules import Cron, Every, Once, editing, from_code, upgrade_check
from scheduling.schedules.rule_rows import CRON_FIELDS
from scheduling.schedules.standing import standing, standings


class Command(LedgerCommand):
    """One subcommand for each thing that users do to schedules."""

    help = "Add, list, preview, pause, resume and remove schedules."

    def add_arguments(self, parser: ArgumentParser) -> None:
        actions = parser.add_subparsers(metavar="ACTION", dest="action", required=True)
        add = self.add_action(actions, "add", self.add, "make a schedule")
        edit = self.add_action(
            actions, "edit", self.edit, "change a schedule, or preview the change"
        )
        show = self.add_action(actions, "show", self.show, "show everything about one schedule")
        listing = self.add_action(actions, "list", self.list, "show all schedules")
        following = self.add_action(actions, "next", self.next, "show the occurrences to come")
        pause = self.add_action(
            actions, "pause", self.pause, "pause: no occurrence comes due until it is resumed"
        )
        resume = self.add_action(actions, "resume", self.resume, "end a pause")
        remove = self.add_action(actions, "remove", self.remove, "delete a schedule; its runs stay")
        audit = self.add_action(
            actions, "audit", self.audit, "list the schedules whose next run an upgrade has moved"
        )
        sync = self.add_action(
            actions, "sync", self.sync, "write the schedules of CELERY_BEAT_SCHEDULE"
        )
        backfill = self.add_action(
            actions, "backfill", self.backfill, "run occurrences of the past"
        )
        for parser in (add, edit, show, following, pause, resume, remove, backfill):
            parser.add_argument("name", metavar="NAME")
        for parser in (edit, show, listing, following, backfill, audit):
            parser.add_argument("--json", action="store_true")
        add.add_argument("task", metavar="TASK", help="a registered task, as app.tasks.name")
        schedule_options.add_rule_options(add)
        add_call_options(add)
        add.add_argument("--description", default="", metavar="TEXT")
        schedule_options.add_policy_options(add)
        schedule_options.add_edit_options(edit)
        following.add_argument("-n", type=parsing.count, default=10, metavar="N", dest="number")
        following.add_argument("--from", type=parsing.moment, metavar="ISO", dest="after")
        pause.add_argument("--until", type=parsing.moment_or_duration, metavar="ISO|DURATION")
        pause.add_argument("--reason", default="", metavar="TEXT")
        schedule_options.add_backfill_options(backfill)
        sync.add_argument("--dry-run", action="store_true", help="only print the changes")
        sync.add_argument(
            "--take-over", nargs="+", action="extend", default=[], metavar="NAME",
            help="let code manage a user's schedule of that name, even if the two differ",
        )  # fmt: skip
        sync.add_argument(
            "--take-over-all", action="store_true", help="the same for every schedule that differs"
        )
        audit.add_argument("--fix", action="store_true", help="plan them again")
        audit.add_argument(
            "--all", action="store_true", help="also plans that this version has made"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        options["act"](options, clock.now())

    def add(self, options: dict[str, Any], now: datetime) -> None:
        """Make a schedule and print its first occurrence."""
        policy: Any = schedule_options.policy_asked(options)
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
            end=self.limit(options["end"], now),
            description=options["description"],
            now=now,
            **policy,
        )
        where = standing(schedules.named(schedule.name))
        self.say(f"added {schedule.name!r}: {where.rule}, next {words.next_due(where, now)}")

    def edit(self, options: dict[str, Any], now: datetime) -> None:
        """Print the changes of an edit, and make them unless this is a dry run."""
        schedule = schedules.named(options["name"])
        rule, columns = self._new_rule(options, schedule, now), self._columns(options, now)
        policy = schedule_options.policy_edited(options)
        if options["dry_run"]:
            edit = editing.preview(schedule, rule, columns, policy, now=now)
        else:
            edit = editing.edit(schedule, rule, columns, policy, by=user_name(), now=now)
        if options["json"]:
            self.say_lines(output.json_lines(shapes.edit(edit)))
            return
        if not edit:
            self.say(f"{schedule.name!r} already has these values: nothing to change.")
            return
        self.say_lines(map(output.printable, words.edit_lines(edit, now)))
        if edit.occurrences and (warning := words.will_not_run(standing(schedule), now)):
            self.note(warning)
        if options["dry_run"]:
            self.say("Nothing was written: this was a dry run.")
        else:
            where = standing(schedules.named(schedule.name))
            self.say(f"edited {schedule.name!r}, next {words.next_due(where, now)}")

    def show(self, options: dict[str, Any], now: datetime) -> None:
        """Print one schedule."""
        where = standing(schedules.named(options["name"]))
        if options["json"]:
            self.say_lines(output.json_lines(shapes.schedule(where)))
        else:
            lines = words.detail_lines(where, now)
            self.say_lines(map(output.printable, lines))

    def list(self, options: dict[str, Any], now: datetime) -> None:
        """Print every schedule while they are read."""
        found = standings()
        if options["json"]:
            self.say_lines(output.json_array(map(shapes.schedule, found)))
            return
        first = next(found, None)
        if first is None:
            self.say("No schedules yet. To make one: manage.py schedule add NAME TASK --every 5m")
            return
        rows = (row for each in chain([first], found) for row in words.rows(each, now))
        head = ("NAME", "TASK", "RULE", "NEXT", "LAST")
        self.say_lines(output.table(head, rows, flexible=(0, 1, 2)))
        self.say(f"Times are in {settings.TIME_ZONE}; a rule with its own time zone names it.")

    def next(self, options: dict[str, Any], now: datetime) -> None:
        """Print the occurrences to come."""
        schedule = schedules.named(options["name"])
        after = self.instant(options["after"]) or now
        found = schedules.next_occurrences(schedule, options["number"], after)
        where = standing(schedule)
        if found and (warning := words.will_not_run(where, now)):
            self.note(warning)
        if options["json"]:
            self.say_lines(output.json_array(map(shapes.occurrence, found)))
        elif found:
            rows = [words.occurrence_row(occurrence, where.policy, now) for occurrence in found]
            self.say_lines(output.table(("DUE", "FROM NOW", "STARTS", "NOTE"), rows))
        else:
            self.say(f"{schedule.name!r} has no occurrence after {output.full_clock(after, now)}.")

    def pause(self, options: dict[str, Any], now: datetime) -> None:
        """Pause a schedule; a second pause replaces the end and the reason of the first."""
        schedule, until = schedules.named(options["name"]), self.limit(options["until"], now)
        reason = options["reason"]
        began = schedules.pause(schedule, by=user_name(), until=until, reason=reason, now=now)
        end = f"until {output.full_clock(until, now)}" if until else "until it is resumed"
        if not began:
            self.note(f"{schedule.name!r} is already paused: its end and reason were replaced.")
        self.say(f"paused {schedule.name!r} {end}")

    def resume(self, options: dict[str, Any], now: datetime) -> None:
        """Resume a schedule and print its next occurrence."""
        schedule = schedules.named(options["name"])
        if not schedules.resume(schedule, by=user_name(), now=now):
            self.note(f"{schedule.name!r} is not paused: nothing was changed.")
            return
        where = standing(schedules.named(schedule.name))
        self.say(f"resumed {schedule.name!r}, next {words.next_due(where, now)}")

    def backfill(self, options: dict[str, Any], now: datetime) -> None:
        """Print the extent of a backfill, and start it unless this is a dry run."""
        schedule = schedules.named(options["name"])
        since = self.instant(options["since"]) or now
        until = self.instant(options["until"]) or now
        again, started = options["again"], None
        found = backfilling.extent(schedule, since, until, again=again, now=now)
        if not options["dry_run"]:
            limits = {"concurrency": options["concurrency"], "again": again}
            started = backfilling.start(schedule, since, until, by=user_name(), now=now, **limits)
        if options["json"]:
            self.say_lines(output.json_lines(shapes.backfill_range(schedule.name, found, started)))
            return
        self.say_lines(words.extent_lines(schedule.name, found, now))
        if started is None:
            self.say("Nothing was written: this was a dry run.")
        else:
            self.say(f"started backfill {started.pk}: {started.concurrency} at a time")

    def remove(self, options: dict[str, Any], now: datetime) -> None:
        """Remove a schedule, and name its runs and backfills that go on."""
        schedule = schedules.named(options["name"])
        schedules.remove(schedule, by=user_name())
        self.say(f"removed {schedule.name!r}; its runs stay in the ledger")
        own = Run.objects.filter(schedule_id=schedule.pk, backfill_id=None)
        unfinished = own.filter(state__in=UNFINISHED).count()
        if unfinished:
            self.note(
                f"{unfinished} of its runs are unfinished and go on (`run cancel ID` ends one)."
            )
        for backfill in backfilling.going_on(schedule):
            self.note(f"a backfill goes on (`backfill cancel {backfill.pk}` ends it).")

    def audit(self, options: dict[str, Any], now: datetime) -> None:
        """Print the schedules that an upgrade has moved; with --fix, plan them again."""
        counts = {"seen": 0, "moved": 0}

        def moved() -> Iterator[upgrade_check.Moved]:
            for batch in upgrade_check.check(every=options["all"]):
                counts["seen"] += len(batch.schedule_ids)
                counts["moved"] += len(batch.moved)
                yield from batch.moved
                if options["fix"]:
                    upgrade_check.plan_anew(batch)

        if options["json"]:
            self.say_lines(output.json_array(map(shapes.moved_by_upgrade, moved())))
        else:
            rows = (words.moved_row(one, now) for one in moved())
            head = ("NAME", "PLANNED", "NOW", "WHY")
            for first in rows:  # without a row, no head is printed
                self.say_lines(output.table(head, chain([first], rows), flexible=(0, 3)))
        self.note(words.audited(counts["seen"], counts["moved"], fixed=options["fix"]))

    def sync(self, options: dict[str, Any], now: datetime) -> None:
        """Write the schedules of code, unless this is a dry run; print the changes."""
        act = from_code.compare if options["dry_run"] else from_code.sync
        done = act(options["take_over"], everything=options["take_over_all"])
        self.say_lines(map(output.printable, done.lines))
        for line in [*done.left, from_code.HOW_TO_TAKE_OVER] if done.left else []:
            self.note(line)
        if not done:
            self.say("The schedules already match CELERY_BEAT_SCHEDULE.")
        elif options["dry_run"]:
            self.say("Nothing was written: this was a dry run.")

    def _rule(self, options: dict[str, Any], now: datetime) -> Cron | Every | Once:
        """Return the rule that the options name; argparse lets exactly one of them through."""
        if options["timezone"] is not None and options["cron"] is None:
            self.refuse("--timezone goes with --cron only.")
        for limit, name in (("start", "--start"), ("end", "--expires")):
            if options[limit] and options["cron"] is None and options["every"] is None:
                self.refuse(f"{name} goes with --cron and --every only.")
        if options["cron"] is not None:
            zone = options["timezone"]
            return Cron(options["cron"], settings.TIME_ZONE if zone is None else zone)
        if options["every"] is not None:
            return Every(options["every"])
        if options["delay"] is not None:
            return Once(now + options["delay"])
        return Once(self.instant(options["at"]) or now)

    def _new_rule(
        self, options: dict[str, Any], schedule: PeriodicTask, now: datetime
    ) -> Cron | Every | Once | None:
        """Return the rule that an edit asks for; None if it keeps the rule."""
        crontab = schedule.crontab
        if options["cron"] is None and options["timezone"] is not None:
            if crontab is None or any(options[name] for name in ("every", "at", "delay")):
                self.refuse("--timezone goes with --cron only, or with a schedule that has one.")
            return Cron(
                " ".join(getattr(crontab, field) for field in CRON_FIELDS), options["timezone"]
            )
        if options["cron"] is not None and options["timezone"] is None and crontab is not None:
            return Cron(options["cron"], str(crontab.timezone))
        if all(options[name] is None for name in ("cron", "every", "at", "delay")):
            return None
        return self._rule({**options, "start": None, "end": None}, now)

    def _columns(self, options: dict[str, Any], now: datetime) -> dict[str, Any]:
        """Return the columns of the schedule's row that an edit changes."""
        read: dict[str, tuple[str, Callable[[Any], Any]]] = {
            "task": ("task", str),
            "task_args": ("args", encode),
            "task_kwargs": ("kwargs", encode),
            "priority": ("priority", lambda step: Priority.__members__.get(step.upper())),
            "queue": ("queue", lambda queue: queue),
            "start": ("start_time", self.instant),
            "end": ("expires", lambda end: self.limit(end, now)),
            "description": ("description", str),
        }
        return {
            column: make(options[name]) for name, (column, make) in read.items() if name in options
        }
