"""What people and code do meanwhile: make schedules, edit them, enqueue, cancel."""

import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from celery import chord, current_app
from django.db import Error, connection, transaction
from django_celery_beat.models import (
    ClockedSchedule,
    CrontabSchedule,
    IntervalSchedule,
    PeriodicTask,
    SolarSchedule,
)

from chaos.oracle import Cron, Every, Noon, Once, Rule, noon_longitude
from chaos.plan import Call, Edit, Planned
from chaos.story import Asked, Phase, Schedule
from chaos.tasks import work
from scheduling import schedules
from scheduling.errors import SchedulingError
from scheduling.jobs import enqueue
from scheduling.models import UNFINISHED, Plan, Policy, Run
from scheduling.waiting import cancel

T = TypeVar("T")
END = datetime(9999, 1, 1, tzinfo=UTC)
MOMENT = timedelta(microseconds=1)


class Users:
    """Acts by the plan, and keeps account of what it did: `schedules` and `asked`."""

    def __init__(self, begun: datetime) -> None:
        self._begun = begun
        self.schedules: dict[str, Schedule] = {}
        self.asked: list[Asked] = []

    # --- Schedules ------------------------------------------------------------------------------

    def make(self, planned: Planned) -> None:
        """Write a schedule and its policy."""
        columns, rule = self._rule(planned)
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
            )
            since = _plan_from(row.pk)
        if isinstance(rule, Every) and rule.anchor == END:
            rule = Every(rule.seconds, since, with_anchor=False)
        if isinstance(rule, Once):  # one that has passed already still fires
            since = min(since, rule.at - MOMENT)
        self.schedules[planned.name] = Schedule(
            row.pk, planned.name, planned.catch_up, planned.catch_up_window, planned.overlap,
            planned.spread, planned.max_attempts, [Phase(since, END, rule)],
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

    def _at(self, second: float) -> datetime:
        return self._begun + timedelta(seconds=second)

    def edit(self, edit: Edit) -> None:
        """Pause, resume or change a schedule, however often the database is away meanwhile."""
        kept = self.schedules[edit.schedule]
        since = _until_done(lambda: self._edited(edit, kept))
        last = kept.phases[-1]
        last.until = since
        rule: Rule | None = None
        if edit.kind == "resume":
            rule = kept.phases[-2].rule
        elif edit.kind == "change" and isinstance(last.rule, Every):
            with_anchor = last.rule.with_anchor
            rule = Every(edit.every, last.rule.anchor if with_anchor else since, with_anchor)
        kept.phases.append(Phase(since, END, rule))

    def _edited(self, edit: Edit, kept: Schedule) -> datetime:
        with transaction.atomic():
            row = schedules.named(kept.name)
            if edit.kind == "change":
                # Saved twice, it is the same: an answer may be lost on its way here.
                PeriodicTask.objects.filter(pk=row.pk).update(interval=_interval(edit.every))
            elif edit.kind == "pause":
                schedules.pause(row, by="chaos")
            else:
                schedules.resume(row, by="chaos")
            return _plan_from(row.pk)

    def stop(self, within: float) -> None:
        """End all schedules, once no occurrence of theirs is due any more."""
        until = time.monotonic() + within
        while Plan.objects.filter(next_due_at__lte=datetime.now(UTC)).exists():
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
        """Enqueue, and note what became of it."""
        asked = Asked(
            call.token, time.time() + call.after, "unknown", call.max_attempts, call.unique_key,
            then=call.then,
        )  # fmt: skip
        self.asked.append(asked)
        try:
            asked.ended = self._called(call, asked)
        except _RollBack:
            asked.ended = "rolled_back"
        except Error:
            connection.close()

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
                expires=_duration(call.expires and call.expires + call.after),
                unique_key=call.unique_key,
            )
            if call.rolled_back:
                raise _RollBack
        if call.cancelled and run.created:
            asked.cancelled = True
            try:
                cancel(run.pk, by="chaos")
            except SchedulingError:
                pass  # it is final already
            except Error:
                connection.close()
        return "committed" if run.created else "found"

    def _send_canvas(self, call: Call, job: Any) -> None:
        """Send what others follow, as a user of Celery would."""

        def part(name: str) -> Any:
            return work.si(f"{call.token}/{name}", 0.0)

        with transaction.atomic():
            first = job.si(call.token, call.argument)
            if call.then == "link":
                options = {"link": part("link"), "link_error": part("error")}
                first.apply_async(countdown=call.after, **options)
            else:
                chord([first, part("other")], part("body")).apply_async(countdown=call.after)
            if call.rolled_back:
                raise _RollBack


class _RollBack(Exception):
    """What ends a transaction that is meant to come to nothing."""


def unfinished() -> int:
    return Run.objects.filter(state__in=UNFINISHED).count()


def _interval(step: int) -> IntervalSchedule:
    found = IntervalSchedule.objects.filter(every=step, period="seconds").first()
    return found or IntervalSchedule.objects.create(every=step, period="seconds")


def _plan_from(schedule_id: int) -> datetime:
    """Return the instant at which the database took note of an edit, in the edit's transaction."""
    return Plan.objects.values_list("plan_from", flat=True).get(schedule_id=schedule_id)


def _duration(seconds: float | None) -> timedelta | None:
    return None if seconds is None else timedelta(seconds=seconds)


def _until_done(act: Callable[[], T]) -> T:
    while True:
        try:
            return act()
        except Error:
            connection.close()
            time.sleep(0.1)
