"""`manage.py check`: faults that would break promises, and tasks that no worker could run."""

from pathlib import Path
from typing import Any

import pytest
from celery import current_app
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django_celery_beat.models import PeriodicTask

from scheduling.checks.project import check_code_schedules
from scheduling.checks.settings import check_messages
from scheduling.models import FINAL, UNFINISHED, State
from tests.scheduling.commands import called
from tests.scheduling.ledger import ADD, plans_of, run, schedule, write_successes

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def _no_schedules_yet(db: None) -> None:
    PeriodicTask.objects.all().delete()


def said(*options: str) -> str:
    return called("check", *options).err


class TestTasksThatAreUnknown:
    def test_a_schedules_task_is_named_with_what_to_do(self) -> None:
        schedule(task="gone.away")
        assert "There are schedules of task 'gone.away', which is unknown here." in said()
        assert "give a renamed task `aliases`" in said()

    @pytest.mark.parametrize("state", UNFINISHED)
    def test_a_waiting_runs_task_is_named(self, state: State) -> None:
        run(state, task="gone.away")
        assert "There are waiting runs of task 'gone.away', which is unknown here." in said()

    def test_what_has_ended_or_is_off_needs_no_task(self) -> None:
        schedule(task="gone.away", enabled=False)
        for state in FINAL:
            run(state, task="gone.away")
        assert "scheduling.W001" not in said()

    @pytest.mark.parametrize(
        "task", [ADD, "tests.jobs.tasks.former", "scheduling.tasks.prune", "celery.backend_cleanup"]
    )
    def test_jobs_their_aliases_and_the_engines_own_are_known(self, task: str) -> None:
        schedule(task=task)
        run(task=task)
        assert "scheduling.W001" not in said()

    @pytest.mark.usefixtures("bare_runs")
    def test_runs_that_have_ended_are_not_read(self) -> None:
        write_successes("gone.away", 20_000)
        with CaptureQueriesContext(connection) as asked:
            assert "scheduling.W001" not in said()
        assert "Seq Scan" not in plans_of(asked, "scheduling_run")

    def test_a_warning_fails_the_check_where_that_is_asked_for(self) -> None:
        run(task="gone.away")
        answer = called("check", "--fail-level", "WARNING")
        assert answer.code == 1
        assert "scheduling.W001" in answer.err


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("accept_content", ["pickle"], "scheduling.E020"),
        ("accept_content", ["json", "pickle"], ""),
        ("accept_content", ["application/json"], ""),
        ("broker_use_ssl", {"ssl_cert_reqs": "none"}, "scheduling.E021"),
        ("broker_use_ssl", None, ""),
    ],
)
def test_what_celerys_broker_is_told_must_fit_the_engine(
    option: str, value: Any, expected: str
) -> None:
    conf = current_app.conf
    before = conf[option]
    conf[option] = value
    try:
        found = " ".join(str(message.id) for message in check_messages(None))
    finally:
        conf[option] = before
    assert found == expected


def test_where_the_ledger_is_away_the_rest_is_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        from django.db import OperationalError

        raise OperationalError("no route")

    monkeypatch.setattr(connection, "ensure_connection", refuse)
    assert "The ledger was not checked: no route" in said()


@pytest.mark.usefixtures("bare_runs")
def test_the_first_look_of_the_operator_reads_no_run_that_has_ended() -> None:
    write_successes(ADD, 20_000)
    first_look = Path("docs/operations.md").read_text().partition("## First look")[2]
    sql = first_look.partition("```sql")[2].partition(";")[0]
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN {sql}")
        assert "Seq Scan" not in str(cursor.fetchall())


@pytest.mark.django_db
def test_an_entry_whose_arguments_do_not_fit_its_task_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    entry = {"task": ADD, "schedule": 60, "args": [1]}
    changes: Any = current_app.conf.changes
    monkeypatch.setitem(changes, "beat_schedule", {"short": entry})
    (warning,) = [each for each in check_code_schedules(None) if each.id == "scheduling.W008"]
    assert "'short'" in warning.msg
    assert f"arguments do not fit task {ADD}" in warning.msg
