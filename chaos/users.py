"""Users and code: they make schedules, edit them, enqueue and cancel."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID
from zoneinfo import ZoneInfo

from celery import chain, chord, current_app
from django.db import Error, connection, transaction
from django_celery_beat.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    SolarSchedule,
)

from chaos.oracle import Cron, Every, Noon, Off, Once, Rule, noon_longitude
from chaos.plan import Call, Edit, Planned
from chaos.story import Asked, Cancel, Phase, Schedule
from chaos.tasks import work
from scheduling import schedules
from scheduling.errors import SchedulingError
from scheduling.execution.cancelling import cancel
from scheduling.jobs import enqueue
from scheduling.models import UNFINISHED, Calendar, ExcludedDate, Plan, Policy, Run, State
from scheduling.schedules import calendars

T = TypeVar("T")
END = datetime(9999, 1, 1, tzinfo=UTC)
MOMENT = timedelta(microseconds=1)


class Users:
    """Acts by the plan, and records its acts: `schedules` and `asked`."""

    def __init__(self, begun: datetime, now: Callable[[], datetime]) -> None:
        self._begun = begun
        self.now = now  # by the ledger's clock
        self._off_at_first: dict[str, Off] = {}
        self.schedules: dict[str, Schedule] = {}
        self.asked: list[Asked] = []
        self.cancels: list[Cancel] = []

    # --- Schedules ------------------------------------------------------------------------------

    def make(self, planned: Planned) -> None:
        """Write a schedule and its policy."""
        columns, rule = self._rule(planned)
        off = self._off(planned, rule)
        with transaction.atomic():
            row = PeriodicTask.objects.create(
                name=planned.name,
                task=f"chaos.tasks.{planned.task}",
                args=f'["{planned.name}", {planned.argument}]',
                one_off=planned.one_off,
                expire_seconds=planned.expire_seconds,
                **columns,
            )
            Policy.objects.create(
                schedule=row,
                catch_up=planned.catch_up,
                catch_up_window=_duration(planned.catch_up_window),
                overlap=planned.overlap,
                spread=timedelta(seconds=planned.spread),
                max_attempts=planned.max_attempts,
                deadline_after=_duration(planned.deadline_after),
                calendar=None if off is None else self._calendar(planned.name, off),
                excluded_day=planned.excluded_day or "skip",
            )
            since = _plan_from(row.pk)
        if isinstance(rule, Every) and rule.anchor == END:
            rule = Every(rule.seconds, since, with_anchor=False)
        if isinstance(rule, Once):  # also fires if its instant has passed already
            since = min(since, rule.at - MOMENT)
        self.schedules[planned.name] = Schedule(
            row.pk, planned.name, planned.catch_up, planned.catch_up_window, planned.overlap,
            planned.spread, planned.max_attempts, [Phase(since, END, rule, off)],
        )  # fmt: skip

    def _rule(self, planned: Planned) -> tuple[dict[str, Any], Rule]:
        """Return the columns of a schedule's rule, whose row is made, and the rule itself."""
        kind, *values = planned.rule
        if kind == "every":
            step, start = values
            anchor = None if start is None else self._at(start)
            interval = _interval(step)
            rule = Every(step, anchor or END, with_anchor=anchor is not None)
            return {"interval": interval, "start_time": anchor}, rule
        if kind == "cron":
            minute, hour, weekday, zone = values
            if not zone:  # of one neighbour of this day
                zone = _zone_where_it_is_noon(self._begun)
                weekday = f"{self._day(zone, weekday):%a}".lower()
            crontab = CrontabSchedule.objects.create(
                minute=minute, hour=hour, day_of_week=weekday, timezone=zone
            )
            return {"crontab": crontab}, Cron(minute, hour, weekday, zone)
        at = self._at(values[0])
        if kind == "once":
            return {"clocked": ClockedSchedule.objects.create(clocked_time=at)}, Once(at)
        longitude = noon_longitude(at)
        solar = SolarSchedule.objects.create(event="solar_noon", latitude=0, longitude=longitude)
        return {"solar": solar}, Noon(longitude)

    def _day(self, zone: str, number: int) -> date:
        return self._begun.astimezone(ZoneInfo(zone)).date() + timedelta(days=number)

    def _off(self, planned: Planned, rule: Rule) -> Off | None:
        if not planned.off:
            return None
        zone = rule.zone if isinstance(rule, Cron) else "UTC"
        dates = [self._day(zone, number).isoformat() for number in planned.off]
        return Off(zone, dates, planned.excluded_day)

    def _calendar(self, name: str, off: Off) -> Calendar:
        dates = {date.fromisoformat(day): "chaos" for day in off.dates}
        calendar = calendars.add(f"of {name}", by="chaos", dates=dates)
        self._off_at_first[name] = off
        return calendar

    def _at(self, second: float) -> datetime:
        return self._begun + timedelta(seconds=second)

    def edit(self, edit: Edit) -> None:
        """Change how a schedule is treated, however often the database is away meanwhile."""
        kept = self.schedules[edit.schedule]
        last = kept.phases[-1]
        new = self._treated(edit, kept)
        until = self.now() + timedelta(seconds=edit.lasts)
        since = until_done(lambda: self._edited(edit, kept, new, until))
        if since is None:  # the pause would have been over before it could begin
            return
        for phase in kept.phases:  # after a step back, of more than the last one
            phase.until = min(phase.until, since)
        rule = new.rule
        if edit.kind == "change" and isinstance(rule, Every) and not rule.with_anchor:
            rule = replace(rule, anchor=since)
        kept.phases.append(Phase(since, END, rule, new.off))
        if edit.kind == "pause_until":
            kept.phases[-1].until = until - MOMENT
            kept.phases.append(Phase(until - MOMENT, END, last.rule, last.off))

    def _treated(self, edit: Edit, kept: Schedule) -> Phase:
        """Return the phase that an edit begins, without its times."""
        last = kept.phases[-1]
        rule: Rule | None = None
        if edit.kind == "resume":
            rule = kept.phases[-2].rule
        elif edit.kind == "change" and isinstance(last.rule, Every):
            rule = replace(last.rule, seconds=edit.every)
        elif edit.kind in ("calendar", "dates"):
            off = self._off_at_first[kept.name] if last.off is None else None
            return Phase(END, END, last.rule, off)
        return Phase(END, END, rule, last.off)

    def _edited(self, edit: Edit, kept: Schedule, new: Phase, until: datetime) -> datetime | None:
        """Edit; done twice it is the same, since an answer may be lost on its way here."""
        with transaction.atomic():
            row = schedules.named(kept.name)
            if edit.kind == "change":
                PeriodicTask.objects.filter(pk=row.pk).update(interval=_interval(edit.every))
            elif edit.kind == "calendar":
                calendar = new.off and calendars.named(f"of {kept.name}")
                Policy.objects.filter(schedule=row).update(calendar=calendar)
            elif edit.kind == "dates":
                _set_dates(calendars.named(f"of {kept.name}"), new.off)
            elif edit.kind == "resume":
                schedules.resume(row, by="chaos")
            elif edit.kind == "pause":
                schedules.pause(row, by="chaos")
            elif not Policy.objects.filter(schedule=row, paused_until=until).exists():
                try:
                    schedules.pause(row, by="chaos", until=until)
                except SchedulingError:
                    return None
            return _plan_from(row.pk)

    def stop(self, within: float) -> None:
        """End all schedules, once no occurrence of theirs is due any more."""
        until = time.monotonic() + within
        while Plan.objects.filter(next_due_at__lte=self.now()).exists():
            if time.monotonic() > until:
                break  # the checker will find them missing
            time.sleep(0.05)
        with transaction.atomic():
            PeriodicTask.objects.filter(enabled=True).update(enabled=False)
            ended = dict(Plan.objects.values_list("schedule_id", "plan_from"))
        for schedule in self.schedules.values():
            schedule.phases[-1].until = max(ended[schedule.id], schedule.phases[-1].since)

    # --- Calls ----------------------------------------------------------------------------------

    def call(self, call: Call) -> None:
        """Enqueue and note the result; some calls happen at the same moment."""
        if call.times == 1:
            self._call(call)
            return
        tokens = [call.token, *(f"{call.token}.{number}" for number in range(1, call.times))]
        begin = threading.Barrier(call.times)

        def one(token: str) -> None:
            try:
                connection.ensure_connection()
            except Error:
                connection.close()
            begin.wait(30)
            self._call(replace(call, token=token))
            connection.close()

        threads = [threading.Thread(target=one, args=(token,), daemon=True) for token in tokens]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _call(self, call: Call) -> None:
        now = time.time()
        asked = Asked(
            call.token, now + call.after, "unknown", call.max_attempts, call.unique_key,
            then=call.then, began=now,
        )  # fmt: skip
        self.asked.append(asked)
        try:
            asked.ended = self._called(call, asked)
        except _RollBack:
            asked.ended = "rolled_back"
        except Error:
            connection.close()
        finally:
            asked.answered = time.time()

    def _called(self, call: Call, asked: Asked) -> str:
        args = (call.token, call.argument)
        name = f"chaos.tasks.{call.task}"
        if call.then:
            asked.max_attempts = asked.unique_key = None
            self._send_canvas(call, current_app.tasks[name])
            return "committed"
        if call.by_celery and call.after:
            asked.max_attempts = asked.unique_key = None
            current_app.tasks[name].apply_async(args, countdown=call.after)
            return "committed"
        with transaction.atomic():
            run = enqueue(
                name,
                args,
                after=timedelta(seconds=call.after),
                priority=call.priority,
                max_attempts=call.max_attempts,
                deadline=_duration(call.deadline and call.deadline + call.after),
                expires=_duration(call.expires and call.expires + call.after),
                unique_key=call.unique_key,
            )
            if call.rolled_back:
                raise _RollBack
        if not run.created:
            asked.found = str(run.pk)
            return "found"
        if call.cancelled:
            self.cancel(run.pk)
        return "committed"

    def cancel(self, run_id: UUID) -> None:
        """Cancel a run, and note the result."""
        kept = Cancel(str(run_id))
        self.cancels.append(kept)
        try:
            run = cancel(run_id, by="chaos")
        except SchedulingError:
            return  # it is final already
        except Error:
            connection.close()
            return
        kept.granted, kept.waited = True, run.state == State.CANCELLED
        kept.attempt = run.attempt

    def _send_canvas(self, call: Call, job: Any) -> None:
        """Send a call with follow-ups, as a user of Celery would."""

        def part(name: str) -> Any:
            return work.si(f"{call.token}/{name}", 0.0)

        with transaction.atomic():
            first = job.si(call.token, call.argument)
            if call.then == "link":
                options = {"link": part("link"), "link_error": part("error")}
                first.apply_async(countdown=call.after, **options)
            elif call.then == "chain":
                chain(first, part("second"), part("third")).apply_async(countdown=call.after)
            else:
                chord([first, part("other")], part("body")).apply_async(countdown=call.after)
            if call.rolled_back:
                raise _RollBack


class _RollBack(Exception):
    """Ends a transaction that is to be rolled back."""


def unfinished() -> int:
    return Run.objects.filter(state__in=UNFINISHED).count()


def _interval(step: int) -> IntervalSchedule:
    found = IntervalSchedule.objects.filter(every=step, period="seconds").first()
    return found or IntervalSchedule.objects.create(every=step, period="seconds")


def _set_dates(calendar: Calendar, off: Off | None) -> None:
    if off is None:
        ExcludedDate.objects.filter(calendar=calendar).delete()
        return
    days = [ExcludedDate(calendar=calendar, date=day, reason="chaos") for day in off.dates]
    ExcludedDate.objects.bulk_create(days, ignore_conflicts=True)


def _zone_where_it_is_noon(instant: datetime) -> str:
    return f"Etc/GMT{instant.hour - 12:+d}"  # a + is to the west


def _plan_from(schedule_id: int) -> datetime:
    """Return the instant at which the database took note of an edit, in the edit's transaction."""
    return Plan.objects.values_list("plan_from", flat=True).get(schedule_id=schedule_id)


def _duration(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)


def until_done(act: Callable[[], T]) -> T:
    while True:
        try:
            return act()
        except Error:
            connection.close()
            time.sleep(0.1)
