import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from uuid import UUID

import pytest
import redis
from celery import current_app
from django.db import DataError, connection, transaction
from pytest_django import Settings

from scheduling import clock
from scheduling.beat import Scheduler
from scheduling.models import Run, State
from scheduling.sql import arrays, lean_cursor, run_prepared
from tests.jobs.tasks import add
from tests.scheduling.child import forget_tracers, hint
from tests.scheduling.ledger import schedule, set_plan
from tests.waiting import wait_for

ODD_TEXTS = ["", "NULL", "null", 'a "quoted" word', "a\\b", "{1,2}", "a,b", " spaced ", "line\nend",
             "tab\t", "Zürich ☃ 🎄", "'", "\x01"]  # fmt: skip


@pytest.mark.django_db
class TestArrays:
    def test_texts_arrive_as_they_are(self) -> None:
        rows: list[tuple[object, ...]] = [(text,) for text in [*ODD_TEXTS, None]]
        with connection.cursor() as cursor:
            cursor.execute("SELECT %s::text[]", arrays(rows, 1))
            assert cursor.fetchone()[0] == [*ODD_TEXTS, None]

    def test_other_values_arrive_as_they_are(self) -> None:
        instant = datetime(2026, 11, 20, 12, 0, 0, 123456, tzinfo=UTC)
        abroad = instant.astimezone(timezone(timedelta(hours=-5, minutes=-30)))
        key = UUID("01990000-0000-7000-8000-000000000001")
        rows: list[tuple[object, ...]] = [(1, key, instant), (None, None, None), (3, key, abroad)]
        with lean_cursor() as cursor:
            cursor.execute("SELECT %s::integer[], %s::uuid[], %s::timestamptz[]", arrays(rows, 3))
            found = cursor.fetchone()
        assert found == ([1, None, 3], [key, None, key], [instant, None, instant])

    def test_no_rows_are_empty_arrays(self) -> None:
        with connection.cursor() as cursor:
            cursor.execute("SELECT %s::text[], %s::integer[]", arrays([], 2))
            assert cursor.fetchone() == ([], [])

    def test_an_enumeration_is_its_value(self) -> None:
        from scheduling.models import Priority, State

        with connection.cursor() as cursor:
            cursor.execute("SELECT %s::text[], %s::int[]", arrays([(State.HELD, Priority.LOW)], 2))
            assert cursor.fetchone() == (["held"], [9])


@pytest.mark.django_db
class TestLeanCursor:
    def test_instants_are_aware_and_in_utc(self) -> None:
        with lean_cursor() as cursor:
            cursor.execute("SELECT '2026-11-20 13:00+01'::timestamptz")
            (found,) = cursor.fetchone()
        assert found == datetime(2026, 11, 20, 12, tzinfo=UTC)
        assert found.utcoffset() == timedelta(0)

    def test_other_cursors_keep_djangos_way(self) -> None:
        with lean_cursor():
            pass
        with connection.cursor() as cursor:
            cursor.execute("SELECT '2026-11-20 13:00+01'::timestamptz")
            assert cursor.fetchone()[0].tzinfo is UTC


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
