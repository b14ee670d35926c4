"""Keeps one Procfile line of `make up` running: starts, restarts and ends its process.

honcho stops everything as soon as one process ends and kills after 5 s; a worker that was killed is
the matter of this project, and a process that is stopped first finishes its work.
"""

import os
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import IO, Any, cast

import honcho.manager
from honcho.printer import Message, Printer
from honcho.process import Process

from config.embedded.server import popen_bound

TICK = 0.2  # seconds between looks at the clock and at the parent
RESTART_DELAY = 1.0
# Ending this soon after its start counts as not starting; so often in a row, it is given up.
TOO_SOON = 10.0
GIVE_UP_AFTER = 3
# Seconds after the request to stop, the signal, and whether the whole process group gets it.
ENDINGS = [
    (0.0, signal.SIGTERM, False),  # Celery finishes running jobs, gunicorn answers requests
    (4.0, signal.SIGQUIT, False),  # Celery hands back running jobs
    (6.5, signal.SIGKILL, True),
]
STOPPED_WITHIN = 7.5
READY_WITHIN = 20.0  # seconds; later, the processes' own lines show the reason
TROUBLE = re.compile(r"\b(CRITICAL|Traceback)\b|ended \(exit status")
STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


class Keeper(Process):  # type: ignore[misc]  # honcho has no types
    """Keeps one command alive, from a process forked for it, until SIGTERM or the parent's end.

    The command runs in a session of its own: a signal from a terminal or honcho to a group must not
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
            os._exit(0)  # the queue has no reader any longer, and a normal exit would flush it

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
    """honcho's printer, which its signal handlers may call in the middle of a line.

    It can hold back the lines of a start, which say little to a reader as long as all goes well.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._waiting: deque[Any] = deque()
        self._writing = False
        self._held: list[Any] | None = None

    def hold(self) -> None:
        """Hold lines back until `announce`, or until one of them tells of trouble."""
        self._held = []

    def announce(self, text: str, *, drop: bool) -> None:
        """Print a text of our own, after the lines that were held back or in place of them."""
        if drop:
            self._held = None
        self._release()
        print(text, file=self.output, flush=True)

    def write(self, message: Any) -> None:
        self._waiting.append(message)
        if self._writing:  # the call that is interrupted goes on with this one
            return
        self._writing = True
        while self._waiting:
            self._write_or_hold(self._waiting.popleft())
        self._writing = False

    def _write_or_hold(self, message: Any) -> None:
        if message.name == ANNOUNCEMENT:
            text, drop = message.data
            self.announce(text, drop=drop)
        elif self._held is None:
            super().write(message)
        else:
            self._held.append(message)
            if _tells_of_trouble(message):
                self._release()

    def _release(self) -> None:
        held, self._held = self._held, None
        for message in held or ():
            super().write(message)


ANNOUNCEMENT = "announcement"  # in the place of a process's name


def _tells_of_trouble(message: Any) -> bool:
    if message.name == honcho.manager.SYSTEM_PRINTER_NAME:
        return " started " not in message.data
    line = message.data
    return bool(
        TROUBLE.search(line.decode("utf-8", "replace") if isinstance(line, bytes) else line)
    )


class Terminal(honcho.manager.Manager):  # type: ignore[misc]  # honcho has no types
    """honcho's manager, of Keepers, without its races around signals.

    With `is_ready`, it says little until that returns True: then it prints `greeting`, and from
    there on the lines of the processes.
    """

    def __init__(self, is_ready: Callable[[], bool] | None = None, greeting: str = "") -> None:
        super().__init__(SteadyPrinter())
        self._process_ctor = Keeper
        self._is_ready, self._greeting = is_ready, greeting
        # Its own would kill the keepers before they have ended their processes.
        honcho.manager.KILL_WAIT = STOPPED_WITHIN

    def run(self) -> int:
        """Run everything until a signal or until a keeper gives up; return the exit status."""
        if self._is_ready:
            self._printer.hold()
        try:
            self.loop()
        finally:
            self._end_keepers()
        asked = {entry["rc"] for entry in honcho.manager.SIGNALS.values()}
        return 0 if self.returncode in asked else int(self.returncode or 0)

    def _greet(self, is_ready: Callable[[], bool]) -> None:
        """Wait until the processes are ready, for a while, and have the greeting printed."""
        until = time.monotonic() + READY_WITHIN
        while not (ready := is_ready()) and time.monotonic() < until:
            time.sleep(TICK)
        text = self._greeting if ready else f"{self._greeting}\n  Not everything is ready yet.\n"
        now = self._clock.now()
        self.events.put(Message("line", (text, ready), now, ANNOUNCEMENT, None))

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
        if self._is_ready:  # a thread only now: the keepers are forked
            threading.Thread(target=self._greet, args=[self._is_ready], daemon=True).start()

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
