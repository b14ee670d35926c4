"""A beat, a worker, a web service or a command as a process: its log, its signals, its end.

System tests, chaos and bench start Truebeat's processes with this class.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

from config.embedded.server import EmbeddedError, popen_bound

ROOT = Path(__file__).resolve().parents[2]


class ModuleProcess:
    """`python -m …` in a session of its own, with its output in a file.

    The process is killed when the process that started it ends.
    """

    def __init__(
        self, name: str, command: Sequence[str], env: Mapping[str, str], log: Path
    ) -> None:
        self.name, self.log = name, log
        self._command = [sys.executable, "-W", "ignore", "-m", *command]
        self._env = env
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, **env: str) -> Self:
        """Start the process with `env` added to its environment; its log continues."""
        with self.log.open("ab") as output:
            self._process = popen_bound(
                self._command, signal.SIGKILL, cwd=ROOT, env={**self._env, **env},
                stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        return self

    @property
    def pid(self) -> int:
        """Return the process id, or 0 before the start."""
        return 0 if self._process is None else self._process.pid

    def ended(self) -> bool:
        return self._process is None or self._process.poll() is not None

    def wait(self, timeout: float) -> int:
        """Wait up to `timeout` seconds for the end; return the exit code."""
        if self._process is None:
            raise EmbeddedError(f"{self.name} was not started.")
        return self._process.wait(timeout)

    def output(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def said(self, text: str) -> bool:
        return text in self.output()

    def signal(self, number: int, *, group: bool = True) -> None:
        """Send a signal to the process, and to its children unless `group` is False."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                (os.killpg if group else os.kill)(self.pid, number)

    def kill(self) -> None:
        """Kill the process and its children with SIGKILL, as the end of a machine would."""
        if self._process is not None:
            self.signal(signal.SIGKILL)
            self.wait(10)

    def stop(self, timeout: float = 20) -> int:
        """Send SIGTERM to the process alone, and return its exit code."""
        self.signal(signal.SIGTERM, group=False)
        return self.wait(timeout)
