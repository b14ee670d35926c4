"""The commands as processes: exit codes, stdout and stderr, and waiting for an end."""

import subprocess
import sys
from pathlib import Path
from uuid import UUID

import pytest

from config.embedded import PostgresServer
from scheduling.execution.claiming import claim
from scheduling.execution.finishing import finish
from scheduling.models import Run, State
from scheduling.runs.outcomes import Outcome
from tests.waiting import WaitFor

MANAGE = Path(__file__).parents[3] / "manage.py"
SWEEP = "notifications.tasks.sweep"

pytestmark = pytest.mark.django_db(transaction=True)


def start(env: dict[str, str], *words: str) -> "subprocess.Popen[str]":
    pipe = subprocess.PIPE
    return subprocess.Popen(
        [sys.executable, MANAGE, *words], env=env, stdout=pipe, stderr=pipe, text=True
    )


def answer(process: "subprocess.Popen[str]") -> tuple[int, list[str], list[str]]:
    out, err = process.communicate(timeout=30)
    return process.returncode, out.splitlines(), err.splitlines()


def run(env: dict[str, str], *words: str) -> tuple[int, list[str], list[str]]:
    return answer(start(env, *words))


def test_the_first_line_of_enqueue_is_the_id(service_env: dict[str, str]) -> None:
    code, (line,), err = run(service_env, "enqueue", SWEEP, "--in", "1h")
    assert (code, err) == (0, [])
    assert Run.objects.get(pk=UUID(line)).state == State.SCHEDULED


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["enqueue", SWEEP, "--in", "5x"], 2),
        (["enqueue"], 2),
        (["enqueue", "notifications.tasks.swep"], 1),
        (["schedule", "add", "x", SWEEP], 2),
        (["schedule", "add", "x", SWEEP, "--cron", "61 * * * *"], 1),
        (["schedule", "next", "x"], 1),
        (["schedule", "fly"], 2),
        (["run", "show", "17"], 2),
        (["run"], 2),
    ],
)
def test_what_is_refused_has_its_exit_code_and_one_line(
    service_env: dict[str, str], words: list[str], code: int
) -> None:
    got, out, err = run(service_env, *words)
    assert (got, out, len(err)) == (code, [], 1)
    assert not Run.objects.exists()


@pytest.mark.parametrize(
    ("state", "code"), [(State.SUCCEEDED, 0), (State.FAILED, 1), (State.CANCELLED, 1)]
)
def test_waiting_ends_with_the_run(
    service_env: dict[str, str], wait_for: WaitFor, state: State, code: int
) -> None:
    process = start(service_env, "enqueue", SWEEP, "--wait", "20")
    assert process.stdout is not None
    # The id is there before the end is.
    run_id = UUID(process.stdout.readline().strip())
    wait_for(lambda: claim(run_id, 1, Run.objects.get(pk=run_id).task))
    assert process.poll() is None
    finish(run_id, 1, Outcome(state, "" if state == State.SUCCEEDED else "because"))
    got, out, err = answer(process)
    assert (got, out) == (code, [state.value])
    assert err == ([] if state == State.SUCCEEDED else ["because"])


def test_waiting_ends_when_the_time_is_up(service_env: dict[str, str]) -> None:
    code, out, err = run(service_env, "enqueue", SWEEP, "--in", "1h", "--wait", "0.2")
    assert (code, len(out)) == (3, 1)
    assert err == [f"the time is up: run {out[0]} is scheduled, and goes on."]


def test_a_database_that_is_away_is_one_clear_line(service_env: dict[str, str]) -> None:
    env = service_env | {"DATABASE_URL": "postgres://ann:secret@127.0.0.1:1/truebeat"}
    code, out, (line,) = run(env, "run", "list")
    assert (code, out) == (1, [])
    assert "cannot reach the database at 127.0.0.1:1: " in line
    assert "secret" not in line


def test_a_database_without_tables_says_what_to_do(
    service_env: dict[str, str], own_postgres: PostgresServer
) -> None:
    env = service_env | {"DATABASE_URL": own_postgres.url}
    code, _, (line,) = run(env, "schedule", "list")
    assert code == 1
    assert "run `manage.py migrate` first" in line


def test_waiting_survives_a_restart_of_the_database(
    service_env: dict[str, str], own_postgres: PostgresServer
) -> None:
    env = service_env | {"DATABASE_URL": own_postgres.url}
    assert run(env, "migrate", "--verbosity", "0")[0] == 0
    process = start(env, "enqueue", SWEEP, "--wait", "3")
    assert process.stdout is not None
    UUID(process.stdout.readline().strip())
    own_postgres.stop()
    own_postgres.start()
    code, _, err = answer(process)
    assert code == 3
    assert err[-1].startswith("the time is up: ")


def test_a_reader_that_stops_reading_is_no_error(service_env: dict[str, str]) -> None:
    command = f"{sys.executable} {MANAGE} run list --json | head -c 1"
    done = subprocess.run(
        ["bash", "-c", command], env=service_env, capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("[", "")
