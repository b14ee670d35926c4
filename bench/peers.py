"""The beats that are measured: real `celery -A config beat` processes, seen from outside."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from bench.ground import ROOT, BenchError, Ground


class Peer(NamedTuple):
    """A scheduler for `celery beat`. `timed` is the same one with a clock on its ticks."""

    name: str
    scheduler: str
    timed: str
    own: bool

    def limit(self, ground: Ground) -> float:
        """Return the seconds after which this peer is not waited for."""
        return float(ground.options.limit if self.own else ground.options.peer_limit)

    def runs(self, ground: Ground) -> int:
        return int(ground.options.runs if self.own else ground.options.peer_runs)


TRUEBEAT = Peer("Truebeat", "scheduling.beat:Scheduler", "bench.ticks:Truebeat", own=True)
DATABASE_SCHEDULER = Peer("DatabaseScheduler", "django", "bench.ticks:Database", own=False)
PEERS = (TRUEBEAT, DATABASE_SCHEDULER)


class Cpu(NamedTuple):
    """Seconds of user and system time."""

    beat: float
    postgres: float


class Beat:
    """A running beat; it is killed at the end of the block."""

    def __init__(
        self, peer: Peer, ground: Ground, *, timed: bool = False, **env: str | int | Path
    ) -> None:
        self.peer, self.ground = peer, ground
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed by __exit__)
        scheduler = peer.timed if timed else peer.scheduler
        pace = ["--max-interval", "1"] if timed and not peer.own else []
        self.started_at = time.monotonic()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", "config", "beat", "--scheduler", scheduler,
             *pace],
            env=ground.env | {name: str(value) for name, value in env.items()},
            cwd=ROOT,
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._process.kill()
        self._process.wait()
        self._log.close()

    def wait(self, until: Callable[[], bool], limit: float, step: float = 0.002) -> bool:
        """Poll `until` for at most `limit` seconds; return whether it came true."""
        deadline = time.monotonic() + limit
        while not until():
            if self._process.poll() is not None:
                raise BenchError(f"{self.peer.name} ended:\n{self._tail()}")
            if time.monotonic() > deadline:
                return False
            time.sleep(step)
        return True

    def _tail(self) -> str:
        self._log.seek(0)
        return "\n".join(self._log.read().decode(errors="replace").splitlines()[-12:])

    def cpu(self) -> Cpu | None:
        """Return the CPU time of beat and of its Postgres sessions so far; None where unknown."""
        sessions = self.ground.value(
            "SELECT array_agg(pid) FROM pg_stat_activity WHERE backend_type = 'client backend'"
            " AND datname = current_database() AND pid <> pg_backend_pid()"
        )
        try:
            return Cpu(cpu_of(self._process.pid), sum(map(cpu_of, sessions or [])))
        except OSError:
            return None

    def memory(self) -> float:
        """Return the megabytes that beat holds in memory; 0 where unknown."""
        try:
            pages = int(Path(f"/proc/{self._process.pid}/statm").read_text().split()[1])
        except OSError:
            return 0.0
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def cpu_of(pid: int) -> float:
    """Return the seconds of user and system time of a process (Linux only)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
