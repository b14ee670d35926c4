"""Waiting runs go up: for a deadline, for their age; with rows of every kind and from two beats."""

import logging
from datetime import datetime, timedelta
from typing import Any

import pytest
import redis
from django.db import connection
from django.test.utils import CaptureQueriesContext
from pytest_django import Settings

from scheduling import clock
from scheduling.beat import dispatch
from scheduling.beat.dispatch import publish
from scheduling.beat.escalation import age_every, escalate_for_age, escalate_for_deadlines
from scheduling.beat.lost_hints import LOST_AFTER, resend
from scheduling.execution.claiming import claim
from scheduling.execution.finishing import finish
from scheduling.models import FINAL, WAITING, Priority, Run, State
from scheduling.runs.enqueueing import enqueue
from scheduling.runs.hints import Broker, Lane, list_key
from scheduling.runs.outcomes import Outcome
from tests.scheduling.beat.test_dispatch import age, hints_in
from tests.scheduling.ledger import ADD, in_thread, run, second_connection

FRONT, HIGH, MEDIUM, LOW = Priority.FRONT, Priority.HIGH, Priority.MEDIUM, Priority.LOW

pytestmark = pytest.mark.django_db


def ago(**length: float) -> datetime:
    return clock.now() - timedelta(**length)


def soon(**length: float) -> datetime:
    return clock.now() + timedelta(**length)


def standing(made: Run) -> tuple[str, int]:
    found: tuple[str, int] = Run.objects.values_list("state", "priority").get(pk=made.pk)
    return found


@pytest.fixture
def broker(redis_client: redis.Redis) -> Broker:
    return Broker()


class TestADeadlineThatIsNear:
    @pytest.mark.parametrize("state", [State.SCHEDULED, State.HELD])
    @pytest.mark.parametrize("step", [MEDIUM, LOW])
    def test_what_waits_is_raised_to_high(self, state: State, step: Priority) -> None:
        made = run(state, priority=step, deadline=soon(seconds=59))
        assert escalate_for_deadlines() == 1
        assert standing(made) == (state, HIGH)
        assert escalate_for_deadlines() == 0

    def test_what_lies_in_redis_gets_a_second_hint_in_the_higher_lane(
        self, broker: Broker, redis_client: redis.Redis
    ) -> None:
        made = run(deadline=soon(seconds=59))
        publish(broker)
        assert escalate_for_deadlines() == 1
        assert standing(made) == (State.SCHEDULED, HIGH)
        publish(broker)
        assert standing(made) == (State.QUEUED, HIGH)
        assert hints_in(redis_client, Lane("celery", HIGH)) == [made.pk]
        assert hints_in(redis_client, Lane("celery", MEDIUM)) == [made.pk]
        assert claim(made.pk, 1, ADD)
        assert claim(made.pk, 1, ADD) is None

    def test_the_first_hint_can_start_it_before_the_second_is_sent(self, broker: Broker) -> None:
        made = run(deadline=soon(seconds=59))
        publish(broker)
        escalate_for_deadlines()
        assert claim(made.pk, 1, ADD)
        assert publish(broker).hints == 0

    @pytest.mark.parametrize("step", [HIGH, FRONT])
    def test_what_is_high_already_stays(self, step: Priority) -> None:
        made = run(State.QUEUED, priority=step, deadline=soon(seconds=59))
        assert escalate_for_deadlines() == 0
        assert standing(made) == (State.QUEUED, step)

    def test_a_deadline_that_is_far_changes_nothing(self) -> None:
        made = run(deadline=soon(seconds=65))
        assert escalate_for_deadlines() == 0
        assert standing(made) == (State.SCHEDULED, MEDIUM)

    def test_how_near_is_a_setting(self, settings: Settings) -> None:
        settings.DEADLINE_NEAR = timedelta(seconds=5)
        near, far = (run(deadline=soon(seconds=seconds)) for seconds in (4, 8))
        escalate_for_deadlines()
        assert (standing(near)[1], standing(far)[1]) == (HIGH, MEDIUM)

    @pytest.mark.parametrize("state", [State.RUNNING, *FINAL])
    def test_what_does_not_wait_is_left_alone(self, state: State) -> None:
        made = run(state, deadline=ago(seconds=1))
        assert escalate_for_deadlines() == 0
        assert standing(made) == (state, MEDIUM)


class TestADeadlineThatHasPassed:
    @pytest.mark.parametrize("state", WAITING)
    @pytest.mark.parametrize("step", [HIGH, MEDIUM, LOW])
    def test_what_waits_goes_to_the_front_and_is_told_of(
        self, state: State, step: Priority, caplog: pytest.LogCaptureFixture
    ) -> None:
        made = run(state, priority=step, deadline=ago(seconds=1))
        with caplog.at_level(logging.INFO):
            assert escalate_for_deadlines() == 1
            assert escalate_for_deadlines() == 0
        after = State.SCHEDULED if state == State.QUEUED else state
        assert standing(made) == (after, FRONT)
        assert [record.message for record in caplog.records].count("deadline_passed") == 1

    def test_it_is_served_before_everything_that_waits(
        self, broker: Broker, redis_client: redis.Redis
    ) -> None:
        others = [run(priority=step) for step in (HIGH, MEDIUM, LOW)]
        late = run(priority=LOW, deadline=ago(seconds=1))
        publish(broker)
        escalate_for_deadlines()
        publish(broker)
        lanes = [list_key(Lane("celery", step)) for step in Priority]
        served: list[Any] = [redis_client.brpop(lanes) for _ in others]
        assert served[0][0].decode() == list_key(Lane("celery", FRONT))
        assert str(late.pk) in served[0][1].decode()

    def test_the_claim_records_how_late_it_starts(self) -> None:
        made = run(deadline=ago(seconds=90))
        escalate_for_deadlines()
        claim(made.pk, 1, ADD)
        made.refresh_from_db()
        assert made.late_by is not None
        assert timedelta(seconds=90) <= made.late_by < timedelta(seconds=100)

    @pytest.mark.parametrize("deadline", [None, timedelta(seconds=5)])
    def test_what_meets_its_deadline_or_has_none_is_not_late(
        self, deadline: timedelta | None
    ) -> None:
        made = run(deadline=deadline and clock.now() + deadline)
        claim(made.pk, 1, ADD)
        made.refresh_from_db()
        assert made.late_by is None

    def test_a_retry_keeps_what_the_first_start_was(self) -> None:
        met, missed = run(deadline=soon(seconds=5)), run(deadline=ago(seconds=5))
        for made in (met, missed):
            claim(made.pk, 1, ADD)
            finish(made.pk, 1, Outcome(State.SCHEDULED, "down", "down", failed=True))
        first = Run.objects.get(pk=missed.pk).late_by
        Run.objects.update(deadline=ago(hours=1))
        for made in (met, missed):
            assert claim(made.pk, 2, ADD)
            made.refresh_from_db()
        assert (met.late_by, missed.late_by) == (None, first)

    def test_a_retry_drops_a_step_and_is_raised_again(self) -> None:
        made = run(deadline=ago(seconds=1))
        escalate_for_deadlines()
        claim(made.pk, 1, ADD)
        finish(made.pk, 1, Outcome(State.SCHEDULED, "down", "down", failed=True))
        assert standing(made) == (State.SCHEDULED, HIGH)
        escalate_for_deadlines()
        assert standing(made) == (State.SCHEDULED, FRONT)


class TestAge:
    @pytest.mark.parametrize("state", [State.SCHEDULED, State.QUEUED])
    @pytest.mark.parametrize(
        ("step", "minutes", "then"),
        [
            (LOW, 9, LOW),
            (LOW, 11, MEDIUM),
            (MEDIUM, 11, MEDIUM),
            (MEDIUM, 21, HIGH),
            (HIGH, 600, HIGH),
            (FRONT, 600, FRONT),
        ],
    )
    def test_each_step_takes_ten_minutes_more_and_high_is_the_last(
        self, state: State, step: Priority, minutes: int, then: Priority
    ) -> None:
        made = run(state, priority=step, run_at=ago(minutes=minutes))
        raised = escalate_for_age()
        assert raised == (step != then)
        assert standing(made) == (State.SCHEDULED if raised else state, then)

    def test_what_was_left_for_long_goes_up_one_step_at_a_time(self) -> None:
        made = run(priority=LOW, run_at=ago(days=3))
        steps = []
        while escalate_for_age():
            steps.append(standing(made)[1])
        assert steps == [MEDIUM, HIGH]

    def test_it_counts_from_run_at_however_long_ago_it_was_queued(self) -> None:
        made = run(State.QUEUED, priority=LOW, run_at=ago(minutes=11), queued_at=ago(seconds=1))
        escalate_for_age()
        assert standing(made) == (State.SCHEDULED, MEDIUM)

    @pytest.mark.parametrize("state", [State.HELD, State.RUNNING, *FINAL])
    def test_what_does_not_wait_for_its_turn_does_not_age(self, state: State) -> None:
        made = run(state, priority=LOW, run_at=ago(hours=1))
        assert escalate_for_age() == 0
        assert standing(made) == (state, LOW)

    def test_only_the_oldest_of_each_queue_do_at_a_time(self) -> None:
        made = {
            (queue, minutes): run(queue=queue, priority=LOW, run_at=ago(minutes=minutes))
            for queue in ("a", "b", "c")
            for minutes in (11, 15, 13)
        }
        assert escalate_for_age(limit=2) == 6
        low = {place for place, one in made.items() if standing(one)[1] == LOW}
        assert low == {("a", 11), ("b", 11), ("c", 11)}

    def test_zero_is_never(self, settings: Settings) -> None:
        settings.AGE_AFTER = timedelta(0)
        run(priority=LOW, run_at=ago(days=3))
        assert escalate_for_age() == 0

    @pytest.mark.parametrize(("after", "every"), [(600, 10), (50, 5), (1, 1), (0, 1)])
    def test_how_often_it_looks_follows_the_setting(
        self, settings: Settings, after: int, every: int
    ) -> None:
        settings.AGE_AFTER = timedelta(seconds=after)
        assert age_every() == timedelta(seconds=every)

    def test_a_retry_begins_anew(self) -> None:
        made = run(priority=MEDIUM, run_at=ago(hours=1))
        claim(made.pk, 1, ADD)
        finish(made.pk, 1, Outcome(State.SCHEDULED, "down", "down", failed=True))
        assert escalate_for_age() == 0
        assert standing(made) == (State.SCHEDULED, LOW)


class TestHintsThatWereLeftBehind:
    def test_they_do_not_make_a_raised_runs_own_hint_look_lost_or_there(
        self, broker: Broker, redis_client: redis.Redis
    ) -> None:
        made = run(deadline=soon(seconds=59))
        publish(broker)
        escalate_for_deadlines()
        publish(broker)
        age(LOST_AFTER.total_seconds() + 1)
        assert resend(broker) == 0
        redis_client.delete(list_key(Lane("celery", HIGH)))
        assert resend(broker) == 1
        assert hints_in(redis_client, Lane("celery", HIGH)) == [made.pk]

    def test_a_crash_between_raising_and_pushing_costs_nothing(
        self, broker: Broker, redis_client: redis.Redis
    ) -> None:
        made = run(deadline=ago(seconds=1))
        publish(broker)
        escalate_for_deadlines()
        dispatch._queue(Lane("celery", FRONT), 10)
        age(LOST_AFTER.total_seconds() + 1)
        assert resend(broker) == 1
        assert hints_in(redis_client, Lane("celery", FRONT)) == [made.pk]

    def test_they_count_in_their_old_lanes_window_until_a_worker_has_come_to_them(
        self, broker: Broker, redis_client: redis.Redis, settings: Settings
    ) -> None:
        settings.QUEUE_WINDOW = 2
        for _ in range(2):
            run(deadline=soon(seconds=59))
        publish(broker)
        escalate_for_deadlines()
        later = run()
        assert publish(broker).hints == 2
        assert standing(later) == (State.SCHEDULED, MEDIUM)
        redis_client.rpop(list_key(Lane("celery", MEDIUM)))
        publish(broker)
        assert standing(later) == (State.QUEUED, MEDIUM)

    def test_a_raised_run_waits_for_room_and_keeps_its_first_hint(
        self, broker: Broker, settings: Settings
    ) -> None:
        settings.QUEUE_WINDOW = 1
        run(priority=HIGH)
        made = run(deadline=soon(seconds=59))
        publish(broker)
        escalate_for_deadlines()
        assert publish(broker).hints == 0
        assert claim(made.pk, 1, ADD)


@pytest.mark.django_db(transaction=True)
class TestManyBeats:
    def test_each_run_is_raised_once(self) -> None:
        now = clock.now()
        Run.objects.bulk_create(
            [
                Run(task="t", queue="q", origin="adhoc", due_at=now, run_at=now, deadline=now)
                for _ in range(1000)
            ]
        )

        def raise_all() -> int:
            return sum(iter(lambda: escalate_for_deadlines(50), 0))

        beats = [in_thread(raise_all) for _ in range(2)]
        assert sum(beat.result(30) for beat in beats) == 1000
        assert not Run.objects.exclude(priority=FRONT).exists()

    def test_a_row_that_somebody_holds_is_not_waited_for(self) -> None:
        held, free = (
            run(priority=LOW, run_at=ago(hours=1), deadline=ago(seconds=1)) for _ in range(2)
        )
        with second_connection() as other:
            other.execute("SELECT 1 FROM scheduling_run WHERE id = %s FOR UPDATE", [held.pk])
            assert in_thread(escalate_for_deadlines).result(5) == 1
            assert in_thread(escalate_for_age).result(5) == 0
        assert (standing(held)[1], standing(free)[1]) == (LOW, FRONT)
        escalate_for_deadlines()
        assert standing(held)[1] == FRONT


@pytest.mark.usefixtures("bare_runs")
def test_no_look_reads_the_backlog(settings: Settings) -> None:
    """It reads no runs that are still to come, are escalated already, or have ended."""
    settings.DEADLINE_NEAR = timedelta(hours=2)
    now = clock.now()
    common: dict[str, Any] = {"task": "t", "origin": "adhoc", "due_at": now}
    kinds: list[dict[str, Any]] = [
        {"run_at": now, "priority": LOW},
        {"run_at": now - timedelta(days=1), "priority": HIGH, "deadline": now + timedelta(hours=1)},
        {"run_at": now - timedelta(days=1), "priority": FRONT, "deadline": now},
        {"run_at": now - timedelta(days=1), "state": State.FAILED, "finished_at": now},
    ]
    Run.objects.bulk_create(
        [Run(**common, **kind, queue=f"q{n % 3}") for kind in kinds for n in range(3000)]
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE scheduling_run")
    with CaptureQueriesContext(connection) as captured:
        assert escalate_for_deadlines() + escalate_for_age() == 0
    with connection.cursor() as cursor:
        for query in captured.captured_queries:
            cursor.execute(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {query['sql']}")
            (plan,) = cursor.fetchone()[0]
            assert "'Seq Scan'" not in str(plan)
            assert plan["Plan"]["Shared Hit Blocks"] + plan["Plan"]["Shared Read Blocks"] < 150


def test_enqueueing_with_a_deadline_in_the_past_starts_at_the_front() -> None:
    made = enqueue(ADD, (1, 2), deadline=timedelta(0))
    escalate_for_deadlines()
    assert standing(made) == (State.SCHEDULED, FRONT)
