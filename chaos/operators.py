"""Operators: they cancel runs, replay them and start backfills."""

import time
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any
from uuid import UUID

from django.db import Error, connection

from chaos.plan import Backfill, Request
from chaos.story import Fill, Replay
from chaos.users import Users, until_done
from scheduling import schedules
from scheduling.errors import SchedulingError
from scheduling.history import backfilling
from scheduling.history.replaying import replay
from scheduling.models import FINAL, UNFINISHED, Origin, Run
from scheduling.models import Backfill as Row


class Operators:
    """Acts by the plan, and keeps account of it: `replays` and `fills`."""

    def __init__(self, users: Users) -> None:
        self._users = users
        self.replays: list[Replay] = []
        self.fills: list[Fill] = []

    def request(self, request: Request) -> None:
        """Cancel, or replay, one of the newest runs."""
        try:
            found = _one_of_the_newest(request)
        except Error:
            connection.close()
            return
        if found is not None:
            (self._users.cancel if request.kind == "cancel" else self._replay)(found)

    def _replay(self, run_id: UUID) -> None:
        kept = Replay(str(run_id))
        self.replays.append(kept)
        try:
            kept.made = str(replay(run_id, by="chaos").pk)
        except SchedulingError:
            self.replays.remove(kept)  # its unique key is in use
        except Error:
            connection.close()

    def fill(self, planned: Backfill) -> None:
        """Ask for a backfill; of one whose answer is lost, look whether it is there."""
        kept = self._users.schedules[planned.schedule]
        phase = next(phase for phase in reversed(kept.phases) if phase.rule is not None)
        at = datetime.now(UTC)
        until = self._users.now() - timedelta(seconds=0.2)
        since = until - timedelta(seconds=planned.reach)
        name = f"{planned.schedule} at {planned.at}"
        made: Row | None = None
        try:
            made = backfilling.start(
                schedules.named(planned.schedule), since, until, by=name,
                concurrency=planned.concurrency, again=planned.again,
            )  # fmt: skip
        except SchedulingError:
            return  # nothing to run
        except Error:
            connection.close()
            made = until_done(lambda: Row.objects.filter(created_by=name).first())
        if made is None or phase.rule is None:
            return
        range_ = (phase.rule, phase.off, since, until)
        pace = (planned.concurrency, planned.again)
        self.fills.append(Fill(str(made.pk), kept.id, kept.name, *range_, *pace, at))

    def cancel_fill(self, planned: Backfill) -> None:
        """Cancel the backfill that was asked for, if there is one."""
        name = f"{planned.schedule} at {planned.at}"
        made = until_done(lambda: Row.objects.filter(created_by=name).first())
        fill = next((fill for fill in self.fills if made and fill.id == str(made.pk)), None)
        if fill is None or made is None:
            return
        fill.cancelled = True
        pk = made.pk
        try:
            until_done(lambda: backfilling.cancel(pk, by="chaos"))
        except SchedulingError:
            return  # all of it is final
        fill.cancelled_at = time.time()


def _one_of_the_newest(request: Request) -> UUID | None:
    """Return an unfinished run to cancel, or a final one to replay that nothing follows."""
    runs: Any = Run.objects.filter(state__in=UNFINISHED)
    if request.kind == "replay":
        called = [Origin.SCHEDULE, Origin.ADHOC, Origin.BACKFILL]
        runs = Run.objects.filter(state__in=FINAL, follow_ups="", origin__in=called)
    newest: list[UUID] = list(runs.order_by("-id").values_list("pk", flat=True)[:100])
    return Random(request.draw).choice(newest) if newest else None
