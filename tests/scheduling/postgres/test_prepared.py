"""Statements that Postgres plans once."""

import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import redis
from celery import current_app
from django.db import DataError, OperationalError, connection, transaction
from pytest_django import Settings

from chaos.network import Proxy
from scheduling import clock
from scheduling.beat.scheduler import Scheduler
from scheduling.models import Run, State
from scheduling.postgres.prepared import run_alone, run_prepared
from tests.jobs.tasks import add
from tests.scheduling.child import forget_tracers, hint
from tests.scheduling.ledger import schedule, set_plan
from tests.waiting import wait_for


@pytest.mark.django_db
class TestPreparedStatements:
    def test_a_plan_made_for_an_empty_table_goes_when_the_table_has_grown(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        query = "SELECT id FROM grown WHERE id = %(id)s::int"
        with connection.cursor() as cursor:
            cursor.execute("CREATE TEMP TABLE grown (id int PRIMARY KEY)")
            cursor.execute("ANALYZE grown")
            for _ in range(8):  # Postgres makes the plan that lasts at the sixth
                assert run_prepared(query, {"id": 1}) == []
            cursor.execute("INSERT INTO grown SELECT generate_series(1, 10000)")
            assert "Seq Scan" in _plan_of(query)
            monkeypatch.setattr(time, "monotonic", lambda: float("inf"))
            assert run_prepared(query, {"id": 7}) == [(7,)]
            assert "Index" in _plan_of(query)

    def test_an_error_is_djangos_and_the_next_statement_works(self) -> None:
        with pytest.raises(DataError), transaction.atomic():
            run_prepared("SELECT 1 / %(zero)s::int", {"zero": 0})
        assert run_prepared("SELECT %(one)s::int", {"one": 1}) == [(1,)]


@pytest.mark.django_db(transaction=True)
class TestAlone:
    """Statements that are transactions of their own, past psycopg's cursor."""

    def test_a_rollback_of_a_job_leaves_the_next_statement_unharmed(self) -> None:
        query = "SELECT %(one)s::int"
        assert run_alone(query, {"one": 1}) == [(1,)]
        with transaction.atomic():
            assert run_prepared(query, {"one": 2}) == [(2,)]
            transaction.set_rollback(True)
        Run.objects.exists()  # psycopg now deallocates all prepared statements
        assert run_alone(query, {"one": 3}) == [(3,)]

    def test_values_of_every_kind_go_there_and_come_back(self) -> None:
        instant = datetime(2026, 11, 20, 12, 0, 0, 123456, tzinfo=UTC)
        values: dict[str, object] = {
            "uuid": UUID(int=7),
            "text": "50 % \\ 'of' \u2603",
            "none": None,
            "true": True,
            "number": -40_000,
            "interval": timedelta(days=2, microseconds=3),
            "timestamptz": instant,
        }
        types = {"none": "text", "true": "bool", "number": "int"}
        columns = ", ".join(f"%({name})s::{types.get(name, name)}" for name in values)
        assert run_alone(f"SELECT {columns}", values) == [tuple(values.values())]

    def test_a_name_may_stand_twice_and_a_percent_sign_is_doubled(self) -> None:
        sql = "SELECT %(n)s::int % %(m)s::int, %(n)s::int, '%%'".replace(" % ", " %% ")
        assert run_alone(sql, {"n": 7, "m": 4}) == [(3, 7, "%")]

    def test_it_is_prepared_once(self) -> None:
        for n in range(3):
            assert run_alone("SELECT %(n)s::int + 1", {"n": n}) == [(n + 1,)]
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_prepared_statements WHERE name LIKE 'alone%'")
            assert cursor.fetchone() == (1,)

    def test_no_rows_and_no_columns_are_an_empty_list(self) -> None:
        assert run_alone("SELECT 1 WHERE %(no)s::bool", {"no": False}) == []
        assert run_alone("DELETE FROM scheduling_run WHERE id = %(id)s", {"id": UUID(int=1)}) == []

    def test_an_error_is_djangos_and_the_next_statement_works(self) -> None:
        with pytest.raises(DataError, match="division by zero"):
            run_alone("SELECT 1 / %(zero)s::int", {"zero": 0})
        assert run_alone("SELECT %(one)s::int", {"one": 1}) == [(1,)]

    def test_in_a_transaction_it_belongs_to_that(self) -> None:
        with transaction.atomic():
            run_alone("CREATE TABLE gone (id int)", {})
            transaction.set_rollback(True)
        assert run_alone("SELECT to_regclass('gone')::text", {}) == [(None,)]

    def test_a_lost_connection_is_an_operational_error(self, proxy: Proxy) -> None:
        assert run_alone("SELECT %(text)s::text", {"text": "here"}) == [("here",)]
        proxy.lose_the_answer_to(b"needle")
        with pytest.raises(OperationalError):
            run_alone("SELECT %(text)s::text", {"text": "needle"})
        connection.close()
        assert run_alone("SELECT %(text)s::text", {"text": "here"}) == [("here",)]


@pytest.mark.django_db(transaction=True)
class TestWithoutPreparedStatements:
    """As behind a pooler that gives each transaction another connection."""

    @pytest.fixture
    def prepared(self, settings: Settings) -> Iterator[Callable[[], int]]:
        """How many statements are prepared on a connection that begins with the setting off."""

        def count() -> int:
            with connection.cursor() as cursor:
                cursor.execute("SELECT count(*) FROM pg_prepared_statements")
                return int(cursor.fetchone()[0])

        settings.PREPARED_STATEMENTS = False
        connection.close()
        yield count
        connection.close()

    def test_none_is_prepared_however_often_it_is_asked(
        self, prepared: Callable[[], int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for value in range(8):
            assert run_prepared("SELECT %(value)s::int", {"value": value}) == [(value,)]
        monkeypatch.setattr(time, "monotonic", lambda: float("inf"))
        assert run_prepared("SELECT %(value)s::int", {"value": 9}) == [(9,)]
        assert prepared() == 0

    def test_an_occurrence_goes_from_due_to_done(
        self, prepared: Callable[[], int], redis_client: redis.Redis
    ) -> None:
        app: Any = current_app
        beat = Scheduler(app=app, lazy=True)
        for name, args in (("good", "[1, 2]"), ("bad", '["one", 2]')):
            row = schedule(name, task=add.name, args=args)
            set_plan(row, clock.now() - timedelta(seconds=1))
        wait_for(lambda: beat.run_once() > 0)
        for made in Run.objects.filter(state=State.QUEUED):
            hint(made)
        forget_tracers()
        assert dict(Run.objects.values_list("schedule_name", "state")) == {
            "good": State.SUCCEEDED, "bad": State.SCHEDULED,
        }  # fmt: skip
        assert prepared() == 0


def _plan_of(query: str) -> str:
    start = query.split("%")[0]
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT name FROM pg_prepared_statements WHERE starts_with(statement, %s)", [start]
        )
        (name,) = cursor.fetchone()
        cursor.execute(f"EXPLAIN EXECUTE {name}(1)")
        return "\n".join(line for (line,) in cursor.fetchall())
