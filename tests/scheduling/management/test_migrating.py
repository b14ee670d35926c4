"""`manage.py migrate` as deployments call it: in part, backwards, twice, without the rights."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from psycopg import sql

from tests.empty_database import Database, empty_database, url_of

Manage = Callable[..., subprocess.CompletedProcess[str]]

NEWER = "0002_triggers"


@pytest.fixture
def database(django_db_setup: None) -> Iterator[Database]:
    with empty_database() as own:
        yield own


@pytest.fixture
def manage(database: Database, service_env: dict[str, str]) -> Manage:
    """Call manage.py on the empty database."""

    def call(*words: str, user: str | None = None, ok: bool = True) -> Any:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "manage.py", *words],
            env={**service_env, "DATABASE_URL": url_of(database, user)},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert (done.returncode == 0) is ok, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        return done

    return call


def schedules(database: Database) -> list[tuple[object, ...]]:
    return database.execute(
        "SELECT name, managed_by FROM django_celery_beat_periodictask t"
        " LEFT JOIN scheduling_policy y ON y.schedule_id = t.id ORDER BY name"
    ).fetchall()


def test_it_may_be_done_app_by_app_backwards_and_again(manage: Manage, database: Database) -> None:
    assert "Apply all migrations: auth" in manage("migrate", "auth").stdout
    manage("migrate", "scheduling", "0001")
    assert "are not written yet" in manage("migrate", "django_celery_results").stdout
    assert "+ scheduling.prune: " in manage("migrate").stdout
    whole = schedules(database)
    assert {by for _, by in whole} == {"code"}
    database.execute("UPDATE django_celery_beat_periodictask SET enabled = false")
    assert "are not written yet" in manage("migrate", "scheduling", "zero").stdout
    assert "= scheduling.prune: now belongs to code" in manage("migrate").stdout
    assert schedules(database) == whole
    disabled = "SELECT count(*) FROM django_celery_beat_periodictask WHERE enabled"
    assert database.execute(disabled).fetchall() == [(0,)]


def test_what_only_looks_or_pretends_ends_well(manage: Manage) -> None:
    manage("migrate", "--plan")
    assert "CREATE FUNCTION" in manage("sqlmigrate", "scheduling", NEWER).stdout
    assert "migrate --fake" in manage("migrate", "--fake").stdout


@pytest.mark.parametrize(
    ("revoked", "words"),
    [
        ("CREATE ON SCHEMA public", "run `GRANT CREATE ON SCHEMA public TO unprivileged;`"),
        ("USAGE ON LANGUAGE plpgsql", "run `GRANT USAGE ON LANGUAGE plpgsql TO unprivileged;`"),
    ],
)
def test_a_user_without_the_rights_is_told_so_before_anything_is_done(
    manage: Manage,
    database: Database,
    revoked: str,
    words: str,
) -> None:
    database.execute(
        "DO $$ BEGIN CREATE ROLE unprivileged LOGIN; EXCEPTION WHEN duplicate_object THEN END $$"
    )
    password = sql.Literal(database.info.password)
    database.execute(sql.SQL("ALTER ROLE unprivileged PASSWORD {}").format(password))
    database.execute("GRANT CREATE ON SCHEMA public TO unprivileged")
    database.execute(f"REVOKE {revoked} FROM unprivileged, public")
    assert words in manage("migrate", user="unprivileged", ok=False).stderr
    there = "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
    assert database.execute(there).fetchall() == [(0,)]
    database.execute("DROP OWNED BY unprivileged")
