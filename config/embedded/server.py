"""The shared parts of the embedded servers: an owner per data directory, start and end.

A server listens on 127.0.0.1 alone and asks for a password. TCP, not a Unix socket: a socket's
path may have 107 bytes, and a checkout can have a longer path.
"""

import ctypes
import fcntl
import os
import secrets
import signal
import socket
import subprocess
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

HOST = "127.0.0.1"
START_TIMEOUT = 60.0  # seconds; a Postgres that was killed replays its log first
STOP_TIMEOUT = 8.0
# A predecessor that lost its parent needs a moment to end.
LOCK_TIMEOUT = 5.0
# Below the range from which kernels pick ports for outgoing connections, so that a server can have
# its port again after a restart.
PORTS = range(15_000, 30_000)
PR_SET_PDEATHSIG = 1


class EmbeddedError(Exception):
    """An embedded service failed; the message says why and what to do."""


class Server(ABC):
    """A server process on `data_dir`. It ends with this process, however this process ends."""

    title: str
    # The signal for an orderly end; the kernel also sends it when this process is gone.
    stop_signal: signal.Signals

    def __init__(self, data_dir: Path, *, port: int | None, durable: bool) -> None:
        self.data_dir = data_dir.absolute()
        self.durable = durable
        self._port_is_given = port is not None
        self.port = port or free_port()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    @abstractmethod
    def url(self) -> str:
        """The address, with the password, in the form that settings.py reads."""

    @property
    def pid(self) -> int:
        if self._process is None:
            raise EmbeddedError(f"{self.title} in {self.data_dir} is not running.")
        return self._process.pid

    @property
    def log(self) -> Path:
        return self.data_dir / "server.log"

    def start(self) -> None:
        """Return when the server answers; on the port it had before, if it ran before."""
        if self._process is not None and self._process.poll() is None:
            return
        self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _claimed(self.data_dir, self.title) as lock:
            self._prepare()
            try:
                self._start_on_a_port(lock, deadline=time.monotonic() + START_TIMEOUT)
                self._settle()
            except BaseException:
                self.stop()
                raise
        self._port_is_given = True

    def stop(self) -> None:
        self._end(self.stop_signal)

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @abstractmethod
    def _command(self) -> Sequence[str]: ...

    @abstractmethod
    def _answers(self) -> bool: ...

    def _prepare(self) -> None:  # noqa: B027 - not every server has to
        """Prepare the server before its first start."""

    def _settle(self) -> None:  # noqa: B027
        """Prepare the running server."""

    def _configuration(self) -> bytes:
        """Return the command's standard input."""
        return b""

    def _start_on_a_port(self, lock: int, *, deadline: float) -> None:
        while True:
            self._process = self._spawn(lock)
            if self._comes_up(self._process, deadline):
                return
            complaint = self.log.read_text(errors="replace")
            if "Address already in use" not in complaint or time.monotonic() > deadline:
                raise EmbeddedError(_no_start(self.title, self.log, complaint))
            if self._port_is_given:
                time.sleep(0.2)
            else:
                self.port = free_port()

    def _spawn(self, lock: int) -> subprocess.Popen[bytes]:
        os.ftruncate(lock, 0)
        with self.log.open("wb") as log, tempfile.TemporaryFile() as configuration:
            configuration.write(self._configuration())
            configuration.seek(0)
            process = popen_bound(
                self._command(),
                self.stop_signal,
                stdin=configuration,
                stdout=log,
                stderr=log,
                cwd=self.data_dir,
                env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"},
                start_new_session=True,  # Ctrl-C is for the supervisor to handle
                pass_fds=[lock],
            )
        os.pwrite(lock, str(process.pid).encode(), 0)
        return process

    def _comes_up(self, process: subprocess.Popen[bytes], deadline: float) -> bool:
        while process.poll() is None:
            if self._answers():
                return True
            if time.monotonic() > deadline:
                self.kill()
            time.sleep(0.02)
        return False

    def _end(self, signum: signal.Signals) -> None:
        if (process := self._process) is None:
            return
        for attempt in (signum, signal.SIGKILL):
            process.send_signal(attempt)
            process.send_signal(signal.SIGCONT)  # it may have been stopped
            try:
                process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                continue
            break
        self._process = None


def free_port() -> int:
    """Return a port of 127.0.0.1 on which no server listens at this moment."""
    for _ in range(100):
        port = secrets.choice(PORTS)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
            except OSError:
                continue
        return port
    raise EmbeddedError(f"No free port on {HOST} between {PORTS.start} and {PORTS.stop}.")


def popen_bound(
    command: Sequence[str], on_parent_death: signal.Signals, **options: Any
) -> subprocess.Popen[bytes]:
    """Start `command` so that it gets `on_parent_death` when this process ends, kill -9 included.

    The kernel binds a child to the *thread* that started it, so a call from another thread goes
    through a thread that lives as long as the process.
    """
    parent = os.getpid()

    def bind() -> None:
        follow_parent(on_parent_death)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)

    def launch() -> subprocess.Popen[bytes]:
        return subprocess.Popen(command, preexec_fn=bind, **options)

    if threading.current_thread() is threading.main_thread():
        process = launch()
    else:
        process = _launcher.submit(launch).result()
    if not _prctl:
        _watch_by_polling(process.pid, on_parent_death)
    return process


_launcher = ThreadPoolExecutor(max_workers=1, thread_name_prefix="embedded-launcher")
_prctl = getattr(ctypes.CDLL(None), "prctl", None)  # Linux


def follow_parent(signum: signal.Signals) -> None:
    """Have this process signalled when its parent ends (on Linux; elsewhere nothing happens)."""
    if _prctl:
        _prctl(PR_SET_PDEATHSIG, int(signum))


def _watch_by_polling(pid: int, signum: signal.Signals) -> None:
    """Do the same without Linux: a shell in a session of its own looks every second."""
    loop = 'while kill -0 "$1" && kill -0 "$2"; do sleep 1; done; kill -"$3" "$2"'
    subprocess.Popen(
        ["/bin/sh", "-c", loop, "watch", str(os.getpid()), str(pid), str(int(signum))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


@contextmanager
def _claimed(data_dir: Path, title: str) -> Iterator[int]:
    """Lock `data_dir` and yield the lock's descriptor, for the server to inherit.

    The lock is held as long as any process has the descriptor open: this one until the server
    runs, then the server and its children. So no second server can open the same files, not even
    one whose supervisor is gone, and none of it needs a process id to be trusted.
    """
    descriptor = os.open(data_dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        deadline = time.monotonic() + LOCK_TIMEOUT
        while not _locked(descriptor):
            if time.monotonic() > deadline:
                owner = os.pread(descriptor, 20, 0).decode() or "unknown"
                raise EmbeddedError(
                    f"{data_dir} is in use by another {title} (process {owner}). "
                    "Stop the process that started it, or use that server."
                )
            time.sleep(0.05)
        yield descriptor
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _no_start(title: str, log: Path, complaint: str) -> str:
    tail = "\n".join(complaint.splitlines()[-8:]) or "(it said nothing)"
    return f"{title} did not start. The end of {log}:\n{tail}"
