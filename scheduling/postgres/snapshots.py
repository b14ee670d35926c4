"""The oldest snapshot, which keeps Postgres from removing dead rows; reported when it hurts."""

from datetime import timedelta
from typing import NamedTuple

from django.db import connection

OLD = timedelta(seconds=5)  # a younger snapshot belongs to a running statement
# Dead rows of the tables that beat looks at in each tick, more than autovacuum leaves by itself.
HURT_FROM, HURT_SHARE = 20_000, 0.05

DEAD_ROWS = """
SELECT COALESCE(sum(n_dead_tup), 0)::bigint,
    COALESCE(sum(n_dead_tup) > %(from)s + %(share)s * sum(n_live_tup), false)
  FROM pg_stat_user_tables
 WHERE relid IN ('scheduling_run'::regclass, 'scheduling_plan'::regclass)
"""

# The snapshots for which Postgres keeps dead rows of this database. A slot's `catalog_xmin` keeps
# no rows. If this role cannot read other roles' sessions, `xact_start` is NULL.
OLDEST = """
SELECT kind, pid, name, extract(epoch FROM clock_timestamp() - since)::float, transactions
  FROM (
    SELECT CASE state WHEN 'idle in transaction' THEN state ELSE 'open transaction' END AS kind,
           pid, application_name AS name, xact_start AS since,
           GREATEST(age(backend_xmin), age(backend_xid)) AS transactions
      FROM pg_stat_activity
     WHERE datname = current_database() AND backend_type = 'client backend'
       AND pid <> pg_backend_pid()
    UNION ALL
    SELECT 'prepared transaction', NULL, gid, prepared, age(transaction)
      FROM pg_prepared_xacts WHERE database = current_database()
    UNION ALL
    SELECT 'replication slot', active_pid, slot_name, NULL, age(xmin) FROM pg_replication_slots
    UNION ALL
    SELECT 'query on a standby', pid, application_name, NULL, age(backend_xmin)
      FROM pg_stat_replication) held
 WHERE transactions IS NOT NULL AND (since IS NULL OR since < clock_timestamp() - %(old)s::interval)
 ORDER BY transactions DESC, since LIMIT 1
"""


class Snapshot(NamedTuple):
    """A snapshot that keeps dead rows; `seconds` is its age, None if Postgres does not tell."""

    kind: str
    pid: int | None
    name: str
    seconds: float | None
    transactions: int
    dead_rows: int

    def __str__(self) -> str:
        who = f"pid {self.pid}" if self.pid else self.kind
        age = f"{self.transactions:,} transactions"
        if self.seconds is not None:
            age = str(timedelta(seconds=round(self.seconds)))
        return (
            f"an old snapshot keeps {self.dead_rows:,} dead rows of runs and plans:"
            f" {who} ({self.kind}, application {self.name!r}), {age} old; end it"
        )


def that_hurts() -> Snapshot | None:
    """Return the oldest snapshot, if it keeps so many dead rows that beat's looks take longer."""
    with connection.cursor() as cursor:
        cursor.execute(DEAD_ROWS, {"from": HURT_FROM, "share": HURT_SHARE})
        dead, hurts = cursor.fetchone()
        if not hurts:
            return None
        cursor.execute(OLDEST, {"old": str(OLD)})
        found = cursor.fetchone()
    if found is None:
        return None
    kind, pid, name, seconds, transactions = found
    return Snapshot(kind, pid, name, seconds, transactions, dead)
