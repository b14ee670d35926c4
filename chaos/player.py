"""Carries out a plan second by second, and waits until all work has ended."""

import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Any

from django.db import connection

from chaos import faults
from chaos.operators import Operators
from chaos.plan import Plan
from chaos.story import Anew, Done, Row, Story
from chaos.testbed import Testbed
from chaos.users import Users, unfinished

LEDGER = """
SELECT r.id::text, r.schedule_id, r.origin, r.task, r.args::json->>0, r.due_at, r.run_at, r.state,
    r.reason, r.attempt, r.failures, r.max_attempts, r.coalesced, r.created_at, r.finished_at,
    r.expires_at, r.unique_key, r.errors::text, t.status, t.result, r.deadline, r.started_at,
    extract(epoch FROM r.late_by)::float, r.replay_of::text, r.backfill_id::text,
    r.priority
  FROM scheduling_run r
  LEFT JOIN django_celery_results_taskresult t ON t.task_id = r.id::text
 ORDER BY r.id
"""
HANDED_BACK = re.compile(r" run_retried run=(\S+) .*reason=['\"]handed back")
ERRORS = 17  # their column's place above; it is JSON


class Player:
    """One plan on one testbed."""

    def __init__(self, testbed: Testbed, plan: Plan) -> None:
        self._testbed, self._plan = testbed, plan
        self._begun = 0.0
        self._done: list[Future[Done]] = []
        self._pool = ThreadPoolExecutor(max_workers=32, thread_name_prefix="fault")

    def play(self, settle: float) -> Story:
        """Carry out the plan, and wait up to `settle` seconds until all runs are final."""
        users = self._set_up()
        threading.Thread(target=self._testbed.supervise, daemon=True).start()
        self._begun = time.monotonic()
        operators = Operators(users)
        acting = threading.Thread(target=self._act, args=[users, operators], daemon=True)
        acting.start()
        self._strike()
        self._pool.shutdown()
        acting.join()
        calm = time.monotonic()
        users.stop(within=settle)
        while unfinished() and time.monotonic() < calm + settle:
            time.sleep(0.1)
        return Story(
            self._plan.seed,
            self._plan.seconds,
            list(users.schedules.values()),
            users.asked,
            list(_rows()),
            [done.result() for done in self._done],
            self._testbed.surprises,
            settled_in=time.monotonic() - calm,
            anew=list(_anew(self._testbed)),
            cancels=users.cancels,
            replays=operators.replays,
            fills=operators.fills,
            steps=self._testbed.steps,
        )

    def _set_up(self) -> Users:
        """Make the schedules, and start everything."""
        for service in self._testbed.services:
            service.start()
        users = Users(datetime.now(UTC), self._testbed.now)
        for schedule in self._plan.schedules:
            users.make(schedule)
        for worker in self._testbed.workers:
            wait(partial(worker.said, " ready."), f"{worker.name} is not ready")
        connection.close()  # it would not survive the faults
        return users

    def _act(self, users: Users, operators: Operators) -> None:
        """Act as users and operators, in order of time."""
        acts: list[tuple[float, Callable[[Any], None], Any]] = [
            *((edit.at, users.edit, edit) for edit in self._plan.edits),
            *((call.at, users.call, call) for call in self._plan.calls),
            *((request.at, operators.request, request) for request in self._plan.requests),
            *((fill.at, operators.fill, fill) for fill in self._plan.backfills),
            *(
                (fill.at + fill.cancelled_after, operators.cancel_fill, fill)
                for fill in self._plan.backfills
                if fill.cancelled_after is not None
            ),
        ]
        for at, act, what in sorted(acts, key=lambda each: each[0]):
            self._wait_until(at)
            act(what)
        connection.close()

    def _strike(self) -> None:
        """Begin each fault at its second; long faults go on beside the next ones."""
        for fault in self._plan.faults:
            self._wait_until(fault.at)
            self._done.append(self._pool.submit(faults.commit, self._testbed, fault))

    def _wait_until(self, second: float) -> None:
        time.sleep(max(self._begun + second - time.monotonic(), 0))


def wait(condition: Callable[[], bool], complaint: str, seconds: float = 150) -> None:
    until = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(complaint)
        time.sleep(0.1)


def _anew(testbed: Testbed) -> Iterator[Anew]:
    """Yield when workers said that they start themselves anew, or hand a run back."""
    for worker in testbed.workers:
        for line in worker.output().splitlines():
            run = HANDED_BACK.search(line)
            if run or " worker_restarts " in line:
                at = datetime.fromisoformat(line.split()[0]).timestamp()
                yield Anew(worker.name, at, run[1] if run else "")


def _rows() -> Iterator[Row]:
    with connection.cursor() as cursor:
        cursor.execute(LEDGER)
        for row in cursor.fetchall():
            columns = [
                json.loads(value) if place == ERRORS else value for place, value in enumerate(row)
            ]
            yield Row(*columns)
