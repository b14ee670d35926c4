"""Real beats, workers and commands on a test's own databases, and the means to break them."""

import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from config.embedded.processes import ModuleProcess
from tests.waiting import wait_for


class SystemProcess(ModuleProcess):
    """A process whose log a test can wait for."""

    def wait_until_said(self, text: str, timeout: float = 30) -> Self:
        def heard() -> bool:
            assert not self.ended(), f"{self.name} ended:\n{self.output()}"
            return self.said(text)

        try:
            wait_for(heard, timeout=timeout)
        except AssertionError:
            raise AssertionError(f"{self.name} never said {text!r}:\n{self.output()}") from None
        return self


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
        self._services: list[SystemProcess] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for service in self._services:
            service.signal(signal.SIGCONT)
            service.kill()
            # pytest prints the log only beside a failure.
            sys.stdout.write(f"--- {service.name}\n{service.output()[-6000:]}\n")

    def start(self, name: str, *command: str, **env: str) -> SystemProcess:
        number = sum(service.name.startswith(name) for service in self._services) + 1
        name = f"{name}{number}"
        service = SystemProcess(name, command, {**self.env, **env}, self._directory / f"{name}.log")
        self._services.append(service)
        return service.start()

    def beat(self, app: str = "config", **env: str) -> SystemProcess:
        return self.start("beat", "celery", "-A", app, "beat", **env)

    def worker(self, concurrency: int = 2, *options: str, **env: str) -> SystemProcess:
        number = len(self._services)
        return self.start(
            "worker", "celery", "-A", "config", "worker", "-c", str(concurrency),
            "-n", f"worker{number}@%h", *options, **env,
        )  # fmt: skip

    def ready_worker(self, concurrency: int = 2, *options: str, **env: str) -> SystemProcess:
        """Start a worker and wait until it listens."""
        return self.worker(concurrency, *options, **env).wait_until_said(" ready.")
