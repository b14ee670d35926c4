"""Replaying all runs that match: each once, also by concurrent users, and none by accident."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import connection

from scheduling import clock
from scheduling.beat.escalation import escalate_for_deadlines
from scheduling.errors import SchedulingError
from scheduling.execution.finishing import finish
from scheduling.history.replaying import Replayed, find, replay, replay_all
from scheduling.history.selecting import Selection
from scheduling.models import FINAL, UNFINISHED, Origin, Priority, Run, State
from scheduling.runs.enqueueing import enqueue
from scheduling.runs.outcomes import NextCall, Outcome
from tests.scheduling.ledger import ADD, NOON, in_thread, run, schedule, second_connection

pytestmark = pytest.mark.django_db

FAILED = Selection(State.FAILED)


def replayed(selection: Selection = FAILED, **options: Any) -> Replayed:
    return replay_all(selection.runs(), by="ana", **{"limit": 1000, **options})


def replays() -> dict[Any, Run]:
    return {made.replay_of: made for made in Run.objects.filter(origin=Origin.REPLAY)}


class TestSelection:
    def test_each_condition_narrows(self) -> None:
        row = schedule("nightly")
        mine: dict[str, Any] = {
            "schedule_id": row.pk, "schedule_name": "nightly", "task": "t", "due_at": NOON,
        }  # fmt: skip
        wanted = run(State.FAILED, **mine)
        for other in (
            {"state": State.EXPIRED}, {"schedule_id": None, "schedule_name": ""}, {"task": "u"},
            {"due_at": NOON - timedelta(seconds=1)}, {"due_at": NOON + timedelta(hours=1)},
        ):  # fmt: skip
            run(**{"state": State.FAILED, **mine, **other})
        hour = {"since": NOON, "until": NOON + timedelta(hours=1)}
        found = Selection(State.FAILED, "nightly", "t", **hour).runs()
        assert [one.pk for one in found] == [wanted.pk]
        assert Selection().runs().count() == 6

    def test_a_schedules_runs_are_found_under_its_earlier_names(self) -> None:
        row = schedule("every day")
        run(State.FAILED, schedule_id=row.pk, schedule_name="nightly")
        run(State.FAILED, schedule_id=row.pk, schedule_name="x", origin=Origin.SCHEDULE)
        assert Selection(schedule="every day").runs().count() == 2

    def test_a_schedule_that_is_gone_is_found_by_name(self) -> None:
        run(State.FAILED, schedule_id=7, schedule_name="nightly")
        assert Selection(schedule="nightly").runs().count() == 1


class TestNewest:
    def test_they_come_newest_first_whatever_their_state(self) -> None:
        states = [state for state in State for _ in range(2)]
        made = [run(state, task="t").pk for state in states]
        run(task="u")
        found = [one.pk for one in Selection(task="t").newest(100, "args")]
        assert found == made[::-1]
        assert [one.pk for one in Selection(task="t").newest(5)] == made[::-1][:5]

    @pytest.mark.parametrize("state", State)
    def test_of_one_state(self, state: State) -> None:
        made = [run(one, task="t").pk for one in State for _ in range(3)]
        mine = Run.objects.filter(pk__in=made, state=state).order_by("-pk")
        assert list(Selection(state, task="t").newest(2)) == list(mine[:2])

    def test_other_conditions_narrow(self) -> None:
        row = schedule("nightly")
        wanted = run(State.FAILED, schedule_id=row.pk, task="t", due_at=NOON)
        run(State.FAILED, schedule_id=row.pk, task="u", due_at=NOON)
        run(State.FAILED, task="t", due_at=NOON - timedelta(1))
        assert list(Selection(task="t", since=NOON).newest(9)) == [wanted]
        assert list(Selection(schedule="nightly", task="t").newest(9)) == [wanted]

    @pytest.mark.usefixtures("bare_runs")
    def test_the_runs_of_other_tasks_are_not_read(self) -> None:
        now = clock.now()
        ended = {"finished_at": now, "state": State.SUCCEEDED}
        Run.objects.bulk_create(
            Run(task="was" if n < 1000 else "is", queue="q", origin="adhoc", due_at=now,
                run_at=now, **ended if n < 15_000 else {})
            for n in range(20_000)
        )  # fmt: skip
        with connection.cursor() as cursor:
            cursor.execute("ANALYZE scheduling_run")
        for task in ("was", "never"):
            plan = Selection(task=task).newest(50).explain()
            assert "run_of_task" in plan
            assert "Seq Scan" not in plan
            assert "pkey" not in plan


class TestReplayAll:
    def test_each_becomes_a_new_run_that_names_the_old_one(self) -> None:
        old = run(
            State.FAILED, args='["\\u2603"]', kwargs='{"x": 1}', options='{"time_limit": 3}',
            queue="q", schedule_id=7, schedule_name="nightly", max_attempts=5, due_at=NOON,
            expires_at=NOON, attempt=4, failures=3, origin=Origin.SCHEDULE,
        )  # fmt: skip
        assert replayed() == (1, 1, 0)
        new = replays()[old.pk]
        for name in (
            "task", "args", "kwargs", "options", "queue", "schedule_id", "schedule_name",
            "max_attempts", "due_at",
        ):  # fmt: skip
            assert getattr(new, name) == getattr(old, name), name
        assert (new.state, new.attempt, new.failures, new.expires_at, new.enqueued_by) == (
            State.SCHEDULED, 1, 0, None, "ana",
        )  # fmt: skip
        assert abs(new.run_at - clock.now()) < timedelta(seconds=10)

    @pytest.mark.parametrize("state", UNFINISHED)
    def test_what_is_unfinished_is_not_replayed(self, state: State) -> None:
        run(state)
        assert replayed(Selection()) == (0, 0, 0)

    @pytest.mark.parametrize("state", FINAL)
    def test_any_end_can_be_asked_for(self, state: State) -> None:
        made = run(state)
        assert replayed(Selection(state)) == (1, 1, 0)
        assert set(replays()) == {made.pk}

    def test_nothing_is_replayed_twice_unless_asked_to(self) -> None:
        old = run(State.FAILED)
        run(State.FAILED)
        replay(old.pk, by="ana")
        assert replayed() == (1, 1, 0)
        assert replayed() == (0, 0, 0)
        assert replayed(again=True) == (2, 2, 0)

    def test_a_replay_that_failed_is_replayed_in_its_turn(self) -> None:
        old = run(State.FAILED)
        first = replay(old.pk, by="ana")
        Run.objects.filter(pk=first.pk).update(state=State.FAILED, finished_at=clock.now())
        replayed()
        assert set(replays()) == {old.pk, first.pk}

    def test_batches_stop_at_the_limit_and_the_next_call_goes_on(self) -> None:
        made = [run(State.FAILED).pk for _ in range(8)]
        assert replayed(limit=5, batch=2) == (5, 5, 0)
        assert set(replays()) == set(made[:5])
        assert replayed(batch=2) == (3, 3, 0)
        assert set(replays()) == set(made)

    def test_the_order_is_that_of_the_old_ones(self) -> None:
        made = [run(State.FAILED).pk for _ in range(5)]
        replayed(batch=2)
        newest = Run.objects.filter(origin=Origin.REPLAY).order_by("run_at", "pk")
        assert [new.replay_of for new in newest] == made

    @pytest.mark.parametrize(
        ("step", "then"),
        [("FRONT", "MEDIUM"), ("HIGH", "MEDIUM"), ("MEDIUM", "MEDIUM"), ("LOW", "LOW")],
    )
    def test_a_crowd_does_not_go_before_the_days_work(self, step: str, then: str) -> None:
        old = run(State.FAILED, priority=Priority[step])
        replayed()
        assert replays()[old.pk].priority == Priority[then]

    @pytest.mark.parametrize(
        ("given", "asked", "alone", "in_bulk"),
        [
            ("MEDIUM", None, "MEDIUM", "MEDIUM"),
            ("HIGH", None, "HIGH", "MEDIUM"),
            ("LOW", None, "LOW", "LOW"),
            ("MEDIUM", Priority.HIGH, "HIGH", "MEDIUM"),
        ],
    )
    def test_retries_and_a_deadline_that_moved_it_leave_the_replay_alone(
        self, given: str, asked: int | None, alone: str, in_bulk: str
    ) -> None:
        old = run(State.RUNNING, priority=Priority[given])
        retry = Outcome(State.SCHEDULED, failed=True, call=NextCall(priority=asked))
        assert finish(old.pk, 1, retry)
        Run.objects.filter(pk=old.pk).update(deadline=NOON)
        assert escalate_for_deadlines() == 1
        Run.objects.filter(pk=old.pk).update(state=State.FAILED, finished_at=clock.now())
        assert Run.objects.get(pk=old.pk).priority == Priority.FRONT
        assert replay(old.pk, by="ana").priority == Priority[alone]
        Run.objects.filter(replay_of=old.pk).delete()
        replayed()
        assert replays()[old.pk].priority == Priority[in_bulk]

    def test_finding_counts_and_writes_nothing(self) -> None:
        early = run(State.FAILED, due_at=NOON)
        late = run(State.FAILED, due_at=NOON + timedelta(hours=3))
        replay(early.pk, by="ana")
        assert find(FAILED.runs()) == (2, 1, early.due_at, late.due_at)
        assert find(Selection(State.SKIPPED).runs()) == (0, 0, None, None)
        assert Run.objects.filter(origin=Origin.REPLAY).count() == 1


class TestUniqueKeys:
    def test_a_replay_has_the_key_of_the_old_one(self) -> None:
        old = run(State.FAILED, unique_key="k")
        assert replay(old.pk, by="ana").unique_key == "k"

    def test_while_an_unfinished_run_has_the_key_nothing_is_replayed(self) -> None:
        old = run(State.FAILED, unique_key="k")
        other = enqueue(ADD, (1, 2), unique_key="k")
        with pytest.raises(SchedulingError, match=f"run {other.pk} has the same unique key 'k'"):
            replay(old.pk, by="ana")
        assert replayed() == (0, 1, 0)

    def test_of_many_with_one_key_one_is_replayed(self) -> None:
        for _ in range(3):
            run(State.FAILED, unique_key="k")
        assert replayed() == (1, 3, 0)


@pytest.mark.django_db(transaction=True)
class TestBesideOthers:
    def test_two_who_replay_the_same_make_one_replay_of_each(self) -> None:
        for _ in range(60):
            run(State.FAILED)
        both = [in_thread(lambda: replayed(batch=7).made) for _ in range(2)]
        assert sum(one.result(20) for one in both) == 60
        assert len(replays()) == 60
        assert Run.objects.filter(origin=Origin.REPLAY).count() == 60

    def test_what_is_replayed_meanwhile_is_seen_once_its_row_is_free(self) -> None:
        old = run(State.FAILED)
        with second_connection() as other:
            other.execute("SELECT 1 FROM scheduling_run WHERE id = %s FOR UPDATE", [old.pk])
            waiting = in_thread(lambda: replayed().made)
            other.execute(
                "INSERT INTO scheduling_run (id, origin, task, queue, due_at, run_at, replay_of)"
                " VALUES (gen_random_uuid(), 'replay', 't', 'q', now(), now(), %s)", [old.pk],
            )  # fmt: skip
            other.commit()
        assert waiting.result(10) == 0


@pytest.mark.usefixtures("bare_runs")
def test_looking_for_failures_reads_failures_alone() -> None:
    now = clock.now()
    Run.objects.bulk_create(
        [
            Run(task="t", queue="q", origin="adhoc", due_at=now, run_at=now, finished_at=now,
                state=State.FAILED if n % 500 == 0 else State.SUCCEEDED)
            for n in range(20_000)
        ]
    )  # fmt: skip
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE scheduling_run")
    chosen = FAILED.runs().order_by("pk")[:500]
    assert "run_finished" in chosen.explain()
    assert "run_finished" in Selection(State.FAILED, task="t").runs().order_by("-pk")[:50].explain()
