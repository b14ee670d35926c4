"""The measured processes, seen from outside: CPU time, memory, and their end."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self
from uuid import uuid4

import psutil

from bench.testbed import BenchError, Testbed
from config.embedded.processes import ModuleProcess


class Cpu(NamedTuple):
    """Seconds of user and system time: of a process with its children, and of all of Postgres."""

    own: float
    postgres: float

    def since(self, earlier: "Cpu") -> "Cpu":
        return Cpu(self.own - earlier.own, self.postgres - earlier.postgres)


class Process(ModuleProcess):
    """A measured process; it and its children are killed at the end of the block."""

    def __init__(self, name: str, testbed: Testbed, command: Sequence[str], **env: str) -> None:
        log = Path(testbed.env["TMPDIR"]) / f"{uuid4()}.log"
        super().__init__(name, command, testbed.env | env, log)
        self.testbed = testbed
        self.started_at = time.monotonic()
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.kill()

    def wait_until(self, until: Callable[[], bool], limit: float, step: float = 0.002) -> bool:
        """Poll `until` for at most `limit` seconds; return whether it came true."""
        deadline = time.monotonic() + limit
        while not until():
            self.check()
            if time.monotonic() > deadline:
                return False
            time.sleep(step)
        return True

    def check(self) -> None:
        """Raise BenchError if the process has ended."""
        if self.ended():
            tail = "\n".join(self.output().splitlines()[-12:])
            raise BenchError(f"{self.name} ended:\n{tail}")

    def cpu(self) -> Cpu:
        """Return the CPU time so far."""
        return Cpu(
            sum(map(_cpu_of, self._family())),
            cpu_of_all(self.testbed.postmaster) if self.testbed.postmaster else 0.0,
        )

    def memory(self) -> float:
        """Return its megabytes of memory; memory that it shares with its children counts once."""
        family = self._family()
        if len(family) == 1:
            return float(family[0].memory_info().rss) / 1e6
        infos = (process.memory_full_info() for process in family)
        return float(sum(getattr(info, "pss", info.uss) for info in infos)) / 1e6

    def _family(self) -> list[psutil.Process]:
        parent = psutil.Process(self.pid)
        return [parent, *parent.children(recursive=True)]


def _cpu_of(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def cpu_of_all(pid: int) -> float:
    """Return the CPU time of a process and of its children, also of ended ones."""
    parent = psutil.Process(pid)
    times = parent.cpu_times()
    gone = float(times.children_user + times.children_system)
    return gone + _cpu_of(parent) + sum(map(_cpu_of_if_there, parent.children()))


def _cpu_of_if_there(process: psutil.Process) -> float:
    try:
        return _cpu_of(process)
    except psutil.NoSuchProcess:
        return 0.0
