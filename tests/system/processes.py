"""Real beats, workers and commands on a test's own databases, and the means to break them."""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.waiting import wait_for

ROOT = Path(__file__).resolve().parents[2]


class Service:
    """One process of the system, in a group of its own, with its log in a file."""

    def __init__(self, name: str, command: list[str], env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.log = log
        with log.open("ab") as output:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=dict(env), stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip

    def said(self, text: str) -> bool:
        return text in self.log.read_text()

    def wait_until_said(self, text: str, timeout: float = 30) -> Self:
        def heard() -> bool:
            assert self.process.poll() is None, f"{self.name} ended:\n{self.log.read_text()}"
            return self.said(text)

        try:
            wait_for(heard, timeout=timeout)
        except AssertionError:
            raise AssertionError(
                f"{self.name} never said {text!r}:\n{self.log.read_text()}"
            ) from None
        return self

    def signal(self, number: int) -> None:
        """Send a signal to the process and its children."""
        os.killpg(self.process.pid, number)

    def kill(self) -> None:
        """Kill -9 the process and its children, as a machine's death would."""
        if self.process.poll() is None:
            self.signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self, timeout: float = 20) -> int:
        """Ask the process to end (SIGTERM to it alone), and return its exit code."""
        self.process.terminate()
        return self.process.wait(timeout)


class System:
    """The processes of one test; all are dead when it ends."""

    def __init__(self, env: Mapping[str, str], directory: Path) -> None:
        leftovers = directory / "tmp"  # of processes that are killed
        leftovers.mkdir()
        self.env = {
            **env,
            "DJANGO_SETTINGS_MODULE": "tests.settings",
            "CELERY_SKIP_CHECKS": "1",
            "TMPDIR": str(leftovers),
        }
        self._directory = directory
        self._services: list[Service] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for service in self._services:
            with suppress(ProcessLookupError):
                service.signal(signal.SIGCONT)
            service.kill()
            # pytest shows it beside a failure, and nowhere else.
            sys.stdout.write(f"--- {service.name}\n{service.log.read_text()[-6000:]}\n")

    def start(self, name: str, *command: str, **env: str) -> Service:
        number = sum(service.name.startswith(name) for service in self._services) + 1
        service = Service(
            f"{name}{number}",
            [sys.executable, "-W", "ignore", "-m", *command],
            {**self.env, **env},
            self._directory / f"{name}{number}.log",
        )
        self._services.append(service)
        return service

    def beat(self, app: str = "config", **env: str) -> Service:
        return self.start("beat", "celery", "-A", app, "beat", **env)

    def worker(self, concurrency: int = 2, *options: str, **env: str) -> Service:
        number = len(self._services)
        return self.start(
            "worker", "celery", "-A", "config", "worker", "-c", str(concurrency),
            "-n", f"worker{number}@%h", *options, **env,
        )  # fmt: skip

    def ready_worker(self, concurrency: int = 2, *options: str, **env: str) -> Service:
        """Start a worker and wait until it listens."""
        return self.worker(concurrency, *options, **env).wait_until_said(" ready.")
