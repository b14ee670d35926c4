"""The measured processes, seen from outside: CPU time, memory, and their end."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import NamedTuple, Self

import psutil

from bench.ground import ROOT, BenchError, Ground


class Cpu(NamedTuple):
    """Seconds of user and system time: of a process with its children, and of all of Postgres."""

    own: float
    postgres: float

    def since(self, earlier: "Cpu") -> "Cpu":
        return Cpu(self.own - earlier.own, self.postgres - earlier.postgres)


class Process:
    """A running `python -m ...`; it and its children are killed at the end of the block."""

    def __init__(self, name: str, ground: Ground, command: Sequence[str], **env: str) -> None:
        self.name, self.ground = name, ground
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        self.started_at = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", *command],
            env=ground.env | env,
            cwd=ROOT,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def wait(self, until: Callable[[], bool], limit: float, step: float = 0.002) -> bool:
        """Poll `until` for at most `limit` seconds; return whether it came true."""
        deadline = time.monotonic() + limit
        while not until():
            self.check()
            if time.monotonic() > deadline:
                return False
            time.sleep(step)
        return True

    def check(self) -> None:
        """Raise BenchError where the process has ended."""
        if self._process.poll() is not None:
            raise BenchError(f"{self.name} ended:\n{self._tail()}")

    def _tail(self) -> str:
        # Not by seeking: the process writes at the same place.
        text = os.pread(self._log.fileno(), 1_000_000, 0).decode(errors="replace")
        return "\n".join(text.splitlines()[-12:])

    def cpu(self) -> Cpu:
        """Return the CPU time so far."""
        return Cpu(
            sum(map(_cpu_of, self._family())),
            cpu_of_all(self.ground.postmaster) if self.ground.postmaster else 0.0,
        )

    def memory(self) -> float:
        """Return the megabytes it holds in memory; what it shares with its children counts once."""
        family = self._family()
        if len(family) == 1:
            return float(family[0].memory_info().rss) / 1e6
        infos = (process.memory_full_info() for process in family)
        return float(sum(getattr(info, "pss", info.uss) for info in infos)) / 1e6

    def _family(self) -> list[psutil.Process]:
        parent = psutil.Process(self._process.pid)
        return [parent, *parent.children(recursive=True)]


def _cpu_of(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def cpu_of_all(pid: int) -> float:
    """Return the CPU time of a process, its children, and those that it had."""
    parent = psutil.Process(pid)
    times = parent.cpu_times()
    gone = float(times.children_user + times.children_system)
    return gone + _cpu_of(parent) + sum(map(_cpu_of_if_there, parent.children()))


def _cpu_of_if_there(process: psutil.Process) -> float:
    try:
        return _cpu_of(process)
    except psutil.NoSuchProcess:
        return 0.0
