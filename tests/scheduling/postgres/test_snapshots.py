"""The oldest snapshot, named when it keeps many dead rows."""

from datetime import timedelta

import pytest
from django.db import connection

from scheduling.health import what_hurts
from scheduling.postgres import snapshots
from tests.scheduling.commands import called
from tests.scheduling.ledger import second_connection
from tests.waiting import wait_for

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def many_dead_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(snapshots, "OLD", timedelta(0))
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO scheduling_run (id, origin, task, queue, due_at, run_at, state)"
            " SELECT gen_random_uuid(), 'adhoc', 't', 'q', now(), now(), 'scheduled'"
            " FROM generate_series(1, 12000)"
        )
        for _ in range(2):
            cursor.execute("UPDATE scheduling_run SET reason = ''")
        cursor.execute("SELECT pg_stat_force_next_flush()")


@pytest.mark.usefixtures("many_dead_rows")
def test_health_names_who_keeps_an_old_snapshot_when_that_hurts() -> None:
    with second_connection() as dump:
        dump.execute("SET application_name = 'nightly dump'")
        dump.execute("SELECT count(*) FROM scheduling_run")
        dump.execute("SELECT txid_current()")
        words = wait_for(what_hurts)["oldest_snapshot"]
        assert f"pid {dump.info.backend_pid}" in words
        assert "idle in transaction" in words
        assert "'nightly dump'" in words
        assert "dead rows" in words
        assert "oldest_snapshot: an old snapshot keeps" in called("health").out


def test_a_snapshot_that_keeps_few_rows_is_not_worth_a_word() -> None:
    with second_connection() as other:
        other.execute("SELECT txid_current()")
        assert what_hurts() == {}
