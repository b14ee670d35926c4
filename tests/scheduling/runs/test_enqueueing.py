import tracemalloc
from collections.abc import Iterator
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

import pytest
from celery import signature
from django.db import connection, transaction
from kombu.utils.json import loads

from scheduling import clock
from scheduling.broker import doorbell
from scheduling.errors import EnqueueError, SchedulingError
from scheduling.history.replaying import replay
from scheduling.ids import uuid7
from scheduling.models import FINAL, UNFINISHED, Origin, Plan, Priority, Run, State
from scheduling.runs.enqueueing import Call, enqueue, enqueue_many
from scheduling.runs.scheduled_calls import run_now
from tests.jobs.tasks import add, write
from tests.scheduling.ledger import ADD, NOON, in_thread, is_blocked, run, schedule
from tests.waiting import wait_for

LATER = datetime(2099, 1, 1, tzinfo=UTC)
EAST, WEST = timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))


@pytest.fixture
def rings(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One number for each time that beat was woken."""
    heard: list[int] = []
    monkeypatch.setattr(doorbell, "ring", lambda: heard.append(1))
    return heard


@pytest.mark.django_db
class TestEnqueue:
    def test_it_writes_a_run_that_may_start_at_once(self) -> None:
        before = clock.now()
        made = enqueue(add, (1, 2))
        assert made.created
        stored = Run.objects.get(pk=made.pk)
        assert (stored.task, stored.args, stored.kwargs) == (ADD, "[1, 2]", "{}")
        assert (stored.origin, stored.state, stored.attempt) == (
            Origin.ADHOC, State.SCHEDULED, 1,
        )  # fmt: skip
        assert (stored.queue, stored.priority, stored.max_attempts) == ("celery", 6, None)
        assert before <= stored.run_at == stored.due_at <= clock.now()
        assert UUID(str(stored.pk)).version == 7

    def test_a_name_does_as_well_as_a_job(self) -> None:
        assert enqueue(ADD, [1], {"y": 2}).kwargs == '{"y": 2}'

    def test_instants_are_taken_as_they_are(self) -> None:
        made = enqueue(add, (1, 2), at=LATER, deadline=LATER, expires=LATER)
        assert (made.run_at, made.due_at, made.deadline, made.expires_at) == (LATER,) * 4

    def test_durations_count_from_the_databases_clock(self) -> None:
        now = clock.now()
        made = enqueue(
            add, (1, 2), after=timedelta(hours=1), deadline=timedelta(hours=2),
            expires=timedelta(hours=3),
        )  # fmt: skip
        for instant, hours in ((made.run_at, 1), (made.deadline, 2), (made.expires_at, 3)):
            assert instant is not None
            assert timedelta(0) <= instant - now - timedelta(hours=hours) < timedelta(seconds=5)

    def test_arguments_keep_their_types(self) -> None:
        values = [date(2026, 11, 20), UUID(int=7), Decimal("1.10"), NOON, "\0 \ud800 ☃"]
        made = enqueue(write, ("path", "x"))
        assert loads(made.args) == ["path", "x"]
        odd = enqueue(add, (values, 1))
        assert loads(Run.objects.get(pk=odd.pk).args)[0] == values

    @pytest.mark.parametrize(
        ("priority", "step"),
        [
            ("front", Priority.FRONT),
            ("LOW", Priority.LOW),
            (Priority.HIGH, Priority.HIGH),
            (4, Priority.HIGH),
            (None, Priority.MEDIUM),
            (0, Priority.FRONT),
        ],
    )
    def test_priorities_have_names(self, priority: Any, step: Priority) -> None:
        assert enqueue(add, (1, 2), priority=priority).priority == step

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"at": NOON.replace(tzinfo=None)}, "`at` must be a datetime with a time zone"),
            ({"at": "tomorrow"}, "`at` must be a datetime"),
            ({"at": LATER, "after": timedelta(1)}, "not both"),
            ({"after": timedelta(-1)}, "`after` must be from 0"),
            ({"deadline": timedelta(-1)}, "`deadline` must be from 0"),
            ({"expires": timedelta(-1)}, "`expires` must be from 0"),
            ({"expires": 60}, "`expires` must be a datetime"),
            ({"priority": "urgent"}, "unknown priority 'urgent': it is one of front, high"),
            ({"priority": -1}, "priority must be a name, or a number that is not negative"),
            ({"max_attempts": 0}, "max_attempts must be a whole number from 1 to 32,767, not 0"),
            ({"max_attempts": 10**10}, "max_attempts must be a whole number"),
            ({"max_attempts": True}, "max_attempts must be a whole number"),
            ({"max_attempts": "3"}, "max_attempts must be a whole number .* not '3'"),
            ({"priority": 2.5}, "priority must be a name, or a number .*: 2.5"),
            ({"at": datetime(1, 1, 1, tzinfo=EAST)}, "`at` must be between the years 1 and 9999"),
            ({"expires": datetime.max.replace(tzinfo=WEST)}, "`expires` must be between"),
            ({"link": "add"}, "`link` must be a signature, as task.s.1., or a list .*'add'"),
            ({"link": [add.s(1), add]}, "`link` must be a signature"),
            ({"link_error": 5}, "`link_error` must be a signature"),
            ({"link": signature("no.such.task")}, "unknown task 'no.such.task'"),
            ({"link": add.s(object())}, "not JSON"),
            ({"unique_key": ""}, "unique_key must have 1 to 255"),
            ({"unique_key": "x" * 256}, "unique_key must have 1 to 255"),
        ],
    )
    def test_bad_options_are_refused_with_their_value(
        self, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(EnqueueError, match=message):
            enqueue(add, (1, 2), **options)
        assert not Run.objects.exists()

    @pytest.mark.parametrize(
        "options",
        [
            {"after": 5},
            {"queue": "q" * 201},
            {"enqueued_by": "x" * 151},
            {"unique_key": "a\0b"},
            {"unique_key": "\ud800"},
            {"unique_key": 5},
            {"queue": "\ud800"},
            {"queue": 5},
            {"enqueued_by": "\ud800"},
            {"after": timedelta.max},
        ],
    )
    def test_these_bad_options_are_refused_as_clearly(self, options: dict[str, Any]) -> None:
        with pytest.raises(EnqueueError):
            enqueue(add, (1, 2), **options)

    @pytest.mark.parametrize(
        ("task", "args", "message"),
        [
            ("no.such.task", (), "unknown task 'no.such.task'"),
            (ADD, (1,), "do not fit task"),
            (ADD, (1, object()), "not JSON"),
            (ADD, "12", "must be a JSON array"),
        ],
    )
    def test_bad_calls_are_refused(self, task: str, args: Any, message: str) -> None:
        with pytest.raises(EnqueueError, match=message):
            enqueue(task, args)


@pytest.mark.django_db(transaction=True)
class TestItsTransaction:
    def test_a_commit_makes_the_runs_and_wakes_beat_once(self, rings: list[int]) -> None:
        with transaction.atomic():
            for _ in range(3):
                enqueue(add, (1, 2))
            enqueue_many(add, [Call((1, 2))])
            assert in_thread(Run.objects.count).result(5) == 0
            assert rings == []
        assert (Run.objects.count(), rings) == (4, [1])

    def test_a_rollback_leaves_nothing_and_wakes_nobody(self, rings: list[int]) -> None:
        with transaction.atomic():
            enqueue(add, (1, 2))
            add.apply_async((1, 2), countdown=5)
            enqueue_many(add, [Call((1, 2))])
            transaction.set_rollback(True)
        assert (Run.objects.count(), rings) == (0, [])

    def test_without_a_transaction_beat_is_woken_at_once(self, rings: list[int]) -> None:
        enqueue(add, (1, 2))
        assert rings == [1]


@pytest.mark.django_db(transaction=True)
class TestUniqueKeys:
    @pytest.mark.parametrize("state", UNFINISHED)
    def test_an_unfinished_run_with_the_key_is_returned(self, state: State) -> None:
        there = run(state, unique_key="k")
        found = enqueue(add, (5, 6), unique_key="k")
        assert (found.pk, found.created, found.args) == (there.pk, False, there.args)

    def test_what_is_found_stays_as_it_is(self) -> None:
        there = enqueue(add, (1, 2), unique_key="k", link=add.s(1))
        enqueue(add, (1, 2), unique_key="k", link=add.s(2), priority="front")
        after = Run.objects.get()
        assert (after.follow_ups, after.priority) == (there.follow_ups, there.priority)

    @pytest.mark.parametrize("state", FINAL)
    def test_a_finished_one_does_not_hold_its_key(self, state: State) -> None:
        run(state, unique_key="k")
        assert enqueue(add, (1, 2), unique_key="k").created

    def test_two_at_once_make_one(self) -> None:
        with transaction.atomic():
            first = enqueue(add, (1, 2), unique_key="k")
            other = in_thread(lambda: enqueue(add, (1, 2), unique_key="k"))
            wait_for(is_blocked)
        second = other.result(5)
        assert (second.pk, second.created) == (first.pk, False)

    def test_the_second_makes_it_where_the_first_is_rolled_back(self) -> None:
        with transaction.atomic():
            enqueue(add, (1, 2), unique_key="k")
            other = in_thread(lambda: enqueue(add, (1, 2), unique_key="k"))
            wait_for(is_blocked)
            transaction.set_rollback(True)
        assert other.result(5).created

    @pytest.mark.parametrize("ends", [True, False])
    def test_one_that_ends_at_that_moment_is_waited_for(self, ends: bool) -> None:
        there = run(State.RUNNING, unique_key="k")
        with transaction.atomic():
            Run.objects.update(state=State.SUCCEEDED, finished_at=clock.now())
            other = in_thread(lambda: enqueue(add, (1, 2), unique_key="k"))
            wait_for(is_blocked)
            transaction.set_rollback(not ends)
        made = other.result(5)
        assert (made.created, made.pk != there.pk) == (ends, ends)

    def test_while_runs_end_all_the_time_there_is_never_more_than_one(self) -> None:
        def enqueue_often() -> int:
            return sum(enqueue(add, (1, 2), unique_key="k").created for _ in range(60))

        def end_often() -> int:
            ended = 0
            while not all(one.done() for one in racing):
                ended += Run.objects.filter(state=State.SCHEDULED).update(
                    state=State.SUCCEEDED, finished_at=clock.now()
                )
            return ended

        racing = [in_thread(enqueue_often) for _ in range(4)]
        ending = in_thread(end_often)
        made = sum(one.result(30) for one in racing)
        assert made == Run.objects.count()
        assert ending.result(30) > 1
        assert Run.objects.filter(state=State.SCHEDULED).count() <= 1

    def test_many_at_once_make_one(self) -> None:
        racing = [in_thread(lambda: enqueue(add, (1, 2), unique_key="k").created) for _ in range(8)]
        assert sum(one.result(10) for one in racing) == 1
        assert Run.objects.count() == 1


@pytest.mark.django_db
class TestMany:
    def test_each_call_becomes_a_run(self) -> None:
        key = uuid7()
        calls = [Call((1,), {"y": 2}), Call((3, 4), id=key)]
        assert enqueue_many(add, calls, priority="low", after=timedelta(hours=1)) == 2
        assert Run.objects.get(pk=key).args == "[3, 4]"
        assert set(Run.objects.values_list("priority", "kwargs")) == {(9, '{"y": 2}'), (9, "{}")}

    def test_none_is_none(self) -> None:
        assert enqueue_many(add, []) == 0

    def test_odd_texts_arrive_as_they_are(self) -> None:
        texts = ['"', "\\", "{", ",", "NULL", "\0", "☃", "", "a'b", "\n", "\ud800"]
        enqueue_many(write, (Call((text,)) for text in texts))
        stored = Run.objects.order_by("id").values_list("args", flat=True)
        assert [loads(args)[0] for args in stored] == texts

    def test_one_bad_call_leaves_nothing(self) -> None:
        calls = [*[Call((1, 2))] * 2500, Call((1,))]
        with pytest.raises(EnqueueError, match="do not fit"):
            enqueue_many(add, calls)
        assert not Run.objects.exists()

    def test_a_source_that_breaks_leaves_nothing(self) -> None:
        def breaking() -> Iterator[Call]:
            yield from [Call((1, 2))] * 1500
            raise OSError("the file is gone")

        with pytest.raises(OSError, match="the file is gone"):
            enqueue_many(add, breaking())
        assert not Run.objects.exists()

    def test_an_id_that_is_taken_is_refused_clearly(self) -> None:
        there = run()
        with pytest.raises(EnqueueError), transaction.atomic():
            enqueue_many(add, [Call((1, 2), id=there.pk)])

    def test_a_hundred_thousand_need_no_more_memory_than_a_few_batches(self) -> None:
        enqueue_many(add, [Call((1, 2))] * 1000)
        tracemalloc.start()
        try:
            count = enqueue_many(add, (Call((n, n)) for n in range(100_000)))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert count == 100_000
        assert Run.objects.count() == 101_000
        assert peak < 8_000_000


@pytest.mark.django_db
class TestRunNow:
    def test_it_is_a_run_of_the_schedule_beside_its_plan(self) -> None:
        row = schedule(queue="q", priority=0, policy={"max_attempts": 4})
        before = Plan.objects.values().get(schedule=row)
        made = run_now(row, by="ann")
        assert (made.origin, made.schedule_id, made.schedule_name) == (
            Origin.ADHOC, row.pk, "nightly",
        )  # fmt: skip
        assert (made.queue, made.priority, made.max_attempts, made.enqueued_by) == (
            "q", Priority.FRONT, 4, "ann",
        )  # fmt: skip
        assert Plan.objects.values().get(schedule=row) == before

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"args": "[1,"}, "args are not JSON"),
            ({"args": "[1]"}, "do not fit"),
            ({"task": "gone"}, "unknown task"),
        ],
    )
    def test_what_could_not_run_is_refused(self, columns: dict[str, Any], message: str) -> None:
        with pytest.raises(EnqueueError, match=message):
            run_now(schedule(**columns), by="ann")

    def test_it_is_treated_like_an_occurrence(self) -> None:
        made = run_now(schedule(headers='{"tenant": "a"}', expire_seconds=60), by="ann")
        assert made.options != "{}"
        assert made.expires_at is not None


@pytest.mark.django_db
class TestReplay:
    @pytest.mark.parametrize("state", FINAL)
    def test_a_finished_run_can_be_replayed(self, state: State) -> None:
        old = run(state, schedule_id=7, schedule_name="s", due_at=NOON, priority=3, failures=2,
                  attempt=3, errors=[{}], max_attempts=9, origin=Origin.SCHEDULE)  # fmt: skip
        made = replay(old.pk, by="ann")
        assert (made.origin, made.replay_of, made.due_at, made.schedule_id) == (
            Origin.REPLAY, old.pk, NOON, 7,
        )  # fmt: skip
        assert (made.attempt, made.failures, made.errors, made.max_attempts) == (1, 0, [], 9)
        assert made.run_at > NOON
        assert made.state == State.SCHEDULED

    @pytest.mark.parametrize("state", UNFINISHED)
    def test_an_unfinished_one_cannot(self, state: State) -> None:
        with pytest.raises(SchedulingError, match="only a finished run"):
            replay(run(state).pk, by="ann")

    def test_one_that_does_not_exist_cannot(self) -> None:
        with pytest.raises(SchedulingError, match="no run has the id"):
            replay(uuid7(), by="ann")


@pytest.mark.django_db
def test_an_enqueue_costs_one_statement() -> None:
    enqueue(add, (1, 2))
    with connection.execute_wrapper(_refuse_more_than_one()):
        enqueue(add, (1, 2), unique_key="k", expires=timedelta(hours=1))


def _refuse_more_than_one() -> Any:
    statements: list[str] = []

    def wrapper(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        statements.append(sql)
        assert len(statements) == 1
        return execute(sql, params, many, context)

    return wrapper
