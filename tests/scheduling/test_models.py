from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection, transaction
from django_celery_beat.models import PeriodicTask

from scheduling.models import (
    FINAL,
    UNFINISHED,
    WAITING,
    Origin,
    Plan,
    Policy,
    Priority,
    Run,
    Schedule,
    State,
)
from tests.scheduling.ledger import NOON, run, schedule


class TestPriority:
    @pytest.mark.parametrize(
        ("number", "step"),
        [
            (None, Priority.MEDIUM),
            (0, Priority.FRONT),
            (2, Priority.FRONT),
            (3, Priority.HIGH),
            (5, Priority.HIGH),
            (6, Priority.MEDIUM),
            (9, Priority.LOW),
            (255, Priority.LOW),
        ],
    )
    def test_it_is_the_list_that_the_redis_transport_sorts_a_number_into(
        self, number: int | None, step: Priority
    ) -> None:
        assert Priority.nearest(number) == step


def test_every_state_is_waiting_running_or_final() -> None:
    assert set(UNFINISHED) | set(FINAL) == set(State)
    assert not set(UNFINISHED) & set(FINAL)
    assert set(UNFINISHED) - set(WAITING) == {State.RUNNING}


@pytest.mark.django_db
class TestConstraints:
    @pytest.mark.parametrize("state", State)
    def test_a_run_has_an_end_if_and_only_if_its_state_is_final(self, state: State) -> None:
        ended = None if state in FINAL else NOON
        with pytest.raises(IntegrityError, match="run_finished_iff_final"), transaction.atomic():
            run(state, finished_at=ended)
        run(state)

    def test_an_occurrence_has_one_row(self) -> None:
        columns: dict[str, Any] = {"origin": Origin.SCHEDULE, "schedule_id": 1, "due_at": NOON}
        run(State.SKIPPED, **columns)
        with pytest.raises(IntegrityError, match="run_one_per_occurrence"), transaction.atomic():
            run(**columns)
        run(**{**columns, "due_at": NOON + timedelta(microseconds=1)})
        run(**{**columns, "schedule_id": 2})

    @pytest.mark.parametrize("origin", [Origin.ADHOC, Origin.BACKFILL, Origin.REPLAY])
    def test_only_what_a_schedule_fired_is_an_occurrence(self, origin: Origin) -> None:
        for _ in range(2):
            run(origin=origin, schedule_id=1, due_at=NOON)

    def test_one_unfinished_run_has_a_key(self) -> None:
        run(State.SUCCEEDED, unique_key="k")
        run(State.RUNNING, unique_key="k")
        with pytest.raises(IntegrityError, match="run_one_unfinished_per_key"):
            run(State.HELD, unique_key="k")


@pytest.mark.django_db
class TestSchedules:
    def test_every_periodic_task_is_a_schedule(self) -> None:
        row = schedule()
        assert Schedule.objects.get(pk=row.pk).name == "nightly"
        assert Schedule._meta.proxy

    def test_a_pause_has_an_end_only_if_it_has_a_beginning(self) -> None:
        with pytest.raises(ValidationError, match="Only a paused schedule"):
            Policy(schedule=schedule(), paused_until=NOON).clean()

    def test_a_policy_written_by_raw_sql_has_the_defaults(self) -> None:
        row = schedule()
        with connection.cursor() as cursor:
            cursor.execute("INSERT INTO scheduling_policy (schedule_id) VALUES (%s)", [row.pk])
        made, default = Policy.objects.get(schedule=row), Policy(schedule=row)
        fields = [field.attname for field in Policy._meta.concrete_fields]
        assert [getattr(made, name) for name in fields] == [
            getattr(default, name) for name in fields
        ]


@pytest.mark.django_db
def test_a_run_written_by_raw_sql_has_the_defaults_of_the_model() -> None:
    made = run()
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO scheduling_run (id, origin, task, queue, due_at, run_at)"
            " VALUES (gen_random_uuid(), 'adhoc', 't', 'q', now(), now()) RETURNING id"
        )
        raw = Run.objects.get(pk=cursor.fetchone()[0])
    names = (
        "args", "kwargs", "options", "priority", "state", "reason", "attempt", "failures",
        "coalesced", "errors", "unique_key", "worker", "enqueued_by",
    )  # fmt: skip
    raw.args = made.args
    assert [getattr(raw, name) for name in names] == [getattr(made, name) for name in names]
    assert raw.created_at is not None


@pytest.mark.django_db
def test_rows_say_what_they_are() -> None:
    row = schedule()
    plan = Plan(schedule=row, next_due_at=datetime(2026, 11, 21, tzinfo=UTC))
    made = run(State.FAILED)
    assert str(plan) == f"plan of schedule {row.pk}: 2026-11-21 00:00:00+00:00"
    assert str(Policy(schedule=row)) == f"policy of schedule {row.pk}"
    assert str(made) == f"tests.jobs.tasks.add {made.id} (failed)"


@pytest.mark.django_db
def test_no_foreign_key_ties_a_run_to_its_schedule() -> None:
    assert not [field for field in Run._meta.get_fields() if field.is_relation]
    assert PeriodicTask.objects.filter(pk=0).count() == 0
