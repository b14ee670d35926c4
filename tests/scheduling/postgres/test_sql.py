from datetime import UTC, datetime, timedelta, timezone
from uuid import UUID

import pytest
from django.db import connection

from scheduling.models import State
from scheduling.postgres.sql import arrays, lean_cursor

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
        from scheduling.models import Priority

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
