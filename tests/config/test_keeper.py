"""The terminal of `make up`, with small commands in the place of web, beat and worker."""

import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from tests.waiting import WaitFor, is_alive

ROOT = Path(__file__).resolve().parents[2]
TERMINAL = """
import sys
from config.embedded.keeper import Terminal
terminal = Terminal()
for number, command in enumerate(sys.argv[1:]):
    terminal.add_process(f"command{number}", command)
sys.exit(terminal.run())
"""
STUBBORN = (
    "import signal, sys, time\n"
    "for each in (signal.SIGTERM, signal.SIGQUIT): signal.signal(each, signal.SIG_IGN)\n"
    "print('deaf', flush=True)\n"
    "time.sleep(600)"
)

Run = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def run() -> Iterator[Run]:
    """Run commands in a terminal of the kind that `make up` has."""
    with ExitStack() as stack:

        def start(*commands: str) -> subprocess.Popen[str]:
            terminal = stack.enter_context(
                subprocess.Popen(
                    [sys.executable, "-c", TERMINAL, *commands],
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=ROOT,
                )
            )
            stack.callback(terminal.kill)
            return terminal

        yield start


def lines_until(terminal: subprocess.Popen[str], text: str) -> list[str]:
    assert terminal.stdout is not None
    lines = []
    for line in terminal.stdout:
        lines.append(line)
        if text in line:
            return lines
    raise AssertionError(f"no {text!r} in {lines}")


def test_a_killed_command_is_started_again(run: Run) -> None:
    terminal = run("sh -c 'echo my id is $$; exec sleep 600'")
    first = int(lines_until(terminal, "my id is")[-1].split()[-1])

    psutil.Process(first).kill()

    second = int(lines_until(terminal, "my id is")[-1].split()[-1])
    assert second != first


def test_a_command_that_never_stays_up_is_given_up_with_its_exit_status(run: Run) -> None:
    terminal = run("sh -c 'echo no settings; exit 7'", "sleep 600")

    lines = lines_until(terminal, "giving up")

    assert sum("no settings" in line for line in lines) == 3
    assert terminal.wait(10) == 7


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_request_to_stop_lets_commands_finish_and_is_no_failure(
    run: Run, signum: signal.Signals
) -> None:
    terminal = run(
        "sh -c 'trap \"echo finished; exit\" TERM; echo ready; while :; do sleep 0.1; done'"
    )
    lines_until(terminal, "ready")

    terminal.send_signal(signum)

    lines_until(terminal, "finished")
    assert terminal.wait(5) == 0


def test_a_command_that_will_not_stop_is_killed_in_less_than_ten_seconds(run: Run) -> None:
    terminal = run(f"{shlex.quote(sys.executable)} -c {shlex.quote(STUBBORN)}")
    lines_until(terminal, "deaf")
    started = time.monotonic()

    terminal.send_signal(signal.SIGINT)

    assert terminal.wait(15) == 0
    assert time.monotonic() - started < 9


def test_an_immediate_signal_ends_everything(run: Run) -> None:
    terminal = run("sleep 600", "sleep 600", "sleep 600")
    lines_until(terminal, "started")

    terminal.send_signal(signal.SIGTERM)

    assert terminal.wait(10) == 0


def test_commands_end_with_a_terminal_that_was_killed(run: Run, wait_for: WaitFor) -> None:
    terminal = run("sh -c 'sleep 600 & echo up; wait'", "sleep 600")
    lines_until(terminal, "up")
    process = psutil.Process(terminal.pid)
    wait_for(lambda: len(process.children(recursive=True)) >= 5, message="both commands run")
    family = process.children(recursive=True)

    terminal.kill()
    terminal.wait()

    wait_for(lambda: not any(map(is_alive, family)), timeout=12, message="all end")


def test_a_command_ends_with_its_keeper(run: Run, wait_for: WaitFor) -> None:
    terminal = run("sleep 600")
    lines_until(terminal, "started")
    keeper = wait_for(lambda: psutil.Process(terminal.pid).children())[0]
    command = wait_for(keeper.children)[0]

    keeper.kill()

    wait_for(lambda: not is_alive(command), message="the command ends")


def test_signals_may_come_in_the_middle_of_a_line(run: Run) -> None:
    terminal = run("sh -c 'while :; do echo a line like many others; done'")
    lines_until(terminal, "a line like many others")

    for _ in range(20):
        terminal.send_signal(signal.SIGTERM)
        lines_until(terminal, "received")

    assert terminal.stdout is not None
    terminal.stdout.read()
    assert terminal.wait(10) == 0
