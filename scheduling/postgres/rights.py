"""Whether the ledger's tables can be made in this database, and whether all are there."""

from django.db import connection
from django.db.migrations.loader import MigrationLoader

from scheduling.errors import SchedulingError

APPS = ("django_celery_beat", "scheduling")
TASKS = "django_celery_beat_periodictask"  # the table that the triggers are made on

RIGHTS = f"""
SELECT current_user, current_schema(),
    has_schema_privilege(current_schema(), 'CREATE'),
    has_language_privilege('plpgsql', 'USAGE'),
    (SELECT pg_get_userbyid(relowner) FROM pg_class
      WHERE oid = to_regclass('{TASKS}') AND NOT pg_has_role(relowner, 'USAGE'))
"""  # noqa: S608 (constants only)

# The first table and the last function that a schedule of code needs.
THERE = """
SELECT to_regclass('scheduling_policy') IS NOT NULL
   AND to_regprocedure('scheduling_hold_calendars(bigint[])') IS NOT NULL
"""


def check() -> None:
    """Refuse a database in which this user cannot make the ledger's tables and triggers.

    Raises:
        SchedulingError: names the missing right, and the statement that grants it.
    """
    if connection.vendor != "postgresql":
        raise SchedulingError(
            f"the ledger cannot live in {connection.vendor}: let DATABASES['default'] name a"
            " PostgreSQL database (ENGINE 'django.db.backends.postgresql')."
        )
    with connection.cursor() as cursor:
        cursor.execute(RIGHTS)
        user, schema, may_create, may_write_functions, owner = cursor.fetchone()
    if schema is None:
        raise SchedulingError(
            f"no schema of the search_path exists for database user {user!r}: create one, or set"
            " search_path in DATABASES['default']['OPTIONS']."
        )
    if not may_create:
        raise SchedulingError(
            f"database user {user!r} cannot create tables and functions in schema {schema!r}:"
            f" as its owner, run `GRANT CREATE ON SCHEMA {schema} TO {user};`, or migrate as"
            " another user."
        )
    if not may_write_functions:
        raise SchedulingError(
            f"database user {user!r} cannot create functions, which the ledger's triggers need:"
            f" as a superuser, run `GRANT USAGE ON LANGUAGE plpgsql TO {user};`, or migrate as"
            " another user."
        )
    if owner is not None:
        raise SchedulingError(
            f"database user {user!r} cannot create triggers on {TASKS}, which belongs to"
            f" {owner!r}: run `GRANT {owner} TO {user};`, or migrate as {owner!r}."
        )


def missing_for_code() -> str:
    """Return why the schedules of code cannot be written to this database, or ""."""
    if connection.vendor != "postgresql":
        return f"the ledger cannot live in {connection.vendor}."
    loader = MigrationLoader(connection)
    for app in APPS:
        known = {key for key in loader.graph.nodes if key[0] == app}
        if known - set(loader.applied_migrations):
            return f"the migrations of {app} are not all applied. `manage.py migrate` does both."
    with connection.cursor() as cursor:
        cursor.execute(THERE)
        if cursor.fetchone()[0]:
            return ""
    return (
        "the tables and triggers of scheduling are missing, although their migrations are marked as"
        " applied (migrate --fake, or tests without migrations)."
    )
