"""One Procfile line of `make up`: start it, start it again when it dies, end it in good time.

honcho stops everything as soon as one process ends and kills after 5 s; a worker that was killed is
what this project is about, and one that is told to stop first finishes what it does.
"""

import os
import signal
import subprocess
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import IO, Any, cast

import honcho.manager
from honcho.printer import Printer
from honcho.process import Process

from config.embedded.server import popen_bound

TICK = 0.2  # seconds between looks at the clock and at the parent
RESTART_DELAY = 1.0
# Ending this soon after its start counts as not starting; so often in a row, it is given up.
TOO_SOON = 10.0
GIVE_UP_AFTER = 3
# Seconds after the request to stop, the signal, and whether the whole process group gets it.
ENDINGS = [
    (0.0, signal.SIGTERM, False),  # Celery finishes what runs, gunicorn answers what came
    (4.0, signal.SIGQUIT, False),  # Celery hands back what runs
    (6.5, signal.SIGKILL, True),
]
STOPPED_WITHIN = 7.5
STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


class Keeper(Process):  # type: ignore[misc]  # honcho has no types
    """Keeps one command alive, from a process forked for it, until SIGTERM or the parent's end.

    The command runs in a session of its own: what a terminal or honcho sends to a group must not
    reach the children of a worker.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._child: subprocess.Popen[bytes] | None = None
        self._supervisor = os.getpid()
        self._stop_asked_at: float | None = None
        self._endings = list(ENDINGS)

    def run(self, events: Any = None, ignore_signals: bool = False) -> None:
        """Be the forked process: report the start, keep the command, report the end."""
        os.setpgid(0, 0)
        self._events = events
        for signum in STOP_SIGNALS:
            signal.signal(signum, self._ask_to_stop)
        signal.signal(signal.SIGALRM, self._tick)
        signal.setitimer(signal.ITIMER_REAL, TICK, TICK)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)
        self._send_message({"pid": os.getpid()}, type="start")
        self._send_message({"returncode": self._keep()}, type="stop")
        if self._is_orphan():
            os._exit(0)  # nobody reads the queue any more, and a normal exit would flush it

    def _keep(self) -> int:
        failures = 0
        while self._stop_asked_at is None:
            started = time.monotonic()
            returncode = self._run_once()
            if self._stop_asked_at is not None:
                break
            failures = failures + 1 if time.monotonic() - started < TOO_SOON else 0
            if failures == GIVE_UP_AFTER:
                self._say(f"ended {failures} times soon after its start: giving up")
                return returncode or 1
            self._say(f"ended (exit status {returncode}); starting it again")
            self._pause(RESTART_DELAY)
        return 0

    def _run_once(self) -> int:
        child = self._child = popen_bound(
            ["/bin/sh", "-c", f"exec {self.cmd}"],
            signal.SIGKILL,
            env=self.env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        with cast(IO[bytes], child.stdout) as output:
            for line in output:
                self._send_message(line)
        returncode = child.wait()
        self._child = None  # its process id may be another's from now on
        return returncode

    def _ask_to_stop(self, signum: int, frame: FrameType | None) -> None:
        if self._stop_asked_at is None:
            self._stop_asked_at = time.monotonic()
        self._tick(signum, frame)

    def _tick(self, signum: int, frame: FrameType | None) -> None:
        if self._stop_asked_at is None and self._is_orphan():
            self._stop_asked_at = time.monotonic()
        if self._stop_asked_at is None or self._child is None:
            return
        waited = time.monotonic() - self._stop_asked_at
        while self._endings and self._endings[0][0] <= waited:
            _, ending, whole_group = self._endings.pop(0)
            with suppress(ProcessLookupError):
                (os.killpg if whole_group else os.kill)(self._child.pid, ending)

    def _is_orphan(self) -> bool:
        return os.getppid() != self._supervisor

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while self._stop_asked_at is None and time.monotonic() < until:
            time.sleep(TICK)

    def _say(self, what: str) -> None:
        self._send_message(f"{self.name} {what}\n".encode())


class SteadyPrinter(Printer):  # type: ignore[misc]  # honcho has no types
    """honcho's printer, which its signal handlers may call in the middle of a line."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._waiting: deque[Any] = deque()
        self._writing = False

    def write(self, message: Any) -> None:
        self._waiting.append(message)
        if self._writing:  # the call that is interrupted goes on with this one
            return
        self._writing = True
        while self._waiting:
            super().write(self._waiting.popleft())
        self._writing = False


class Terminal(honcho.manager.Manager):  # type: ignore[misc]  # honcho has no types
    """honcho's manager, of Keepers, without its races around signals."""

    def __init__(self) -> None:
        super().__init__(SteadyPrinter())
        self._process_ctor = Keeper
        # Its own would kill the keepers before they have ended what they keep.
        honcho.manager.KILL_WAIT = STOPPED_WITHIN

    def run(self) -> int:
        """Run everything until a signal or until a keeper gives up; return the exit status."""
        try:
            self.loop()
        finally:
            self._end_keepers()
        asked = {entry["rc"] for entry in honcho.manager.SIGNALS.values()}
        return 0 if self.returncode in asked else int(self.returncode or 0)

    def _start(self) -> None:
        """Start the keepers, with their process groups made before any signal can be for them."""
        signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))
        honcho.manager.SIGNALS.setdefault(signal.SIGHUP, {"name": "SIGHUP", "rc": 129})
        with _blocked():
            super()._start()
            for entry in self._processes.values():
                entry["pid"] = entry["process"].pid
                with suppress(OSError):  # it did so itself
                    os.setpgid(entry["pid"], entry["pid"])

    def _end_keepers(self) -> None:
        """Wait for every keeper, also when the terminal is gone and the loop failed on it."""
        keepers = [entry["process"] for entry in self._processes.values() if "process" in entry]
        for keeper in keepers:
            keeper.terminate()
        for keeper in keepers:
            keeper.join(STOPPED_WITHIN)
            keeper.kill()


@contextmanager
def _blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
