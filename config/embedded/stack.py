"""All of Truebeat in one terminal, and single commands, on embedded services.

Data that must survive lie in var/: postgres/, redis/, mail/, secret-key, admin-password. While `up`
runs, var/up.env holds its addresses, which settings.py reads in a second terminal.
"""

import fcntl
import multiprocessing
import os
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TextIO
from urllib.parse import quote

from honcho.environ import parse_procfile

from config.embedded.keeper import STOPPED_WITHIN, Terminal
from config.embedded.postgres_server import start_postgres
from config.embedded.redis_server import start_redis
from config.embedded.server import HOST, EmbeddedError, follow_parent, popen_bound

ROOT = Path(__file__).resolve().parents[2]
VAR = ROOT / "var"
UP_ENV = VAR / "up.env"
KEPT = ("web", "beat", "worker")
# The variables that a second terminal needs for the same services.
SHARED = ("DATABASE_URL", "REDIS_URL", "SECRET_KEY", "DEBUG", "EMAIL_URL")


def up() -> int:
    """Run services, migrations, demo data, web, beat and worker, until Ctrl-C or SIGTERM."""
    _stop_in_order_on_signals()
    port = int(os.environ.get("PORT", "8000"))
    with _only_one(f"http://{HOST}:{port}/"), ExitStack() as stack:
        _wait_for_port(port)
        env = stack.enter_context(services(VAR, durable=True))
        _say("Services", "PostgreSQL and Redis are up")
        env |= {"PORT": str(port), "BIND": HOST, "PYTHONUNBUFFERED": "1"}
        env["DEMO_ADMIN_PASSWORD"] = _kept_secret(VAR / "admin-password", 12)
        stack.enter_context(_published(env))
        _migrate(env)
        _load_demo_once(env)
        _say("Starting", "web, beat and worker ...")
        return _run_procfile(env)


def run(command: Sequence[str], *, throwaway: bool) -> int:
    """Run one command with services up: those of a running `up`, or its data, or throwaway ones."""
    _stop_in_order_on_signals()
    with ExitStack() as stack:
        if throwaway:
            place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="truebeat-")))
            env = stack.enter_context(services(place, durable=False))
        elif _up_is_running():
            env = _read_env(UP_ENV) | _environment(VAR)
        else:
            env = stack.enter_context(services(VAR, durable=True))
        return _run_in_foreground(command, env)


@contextmanager
def services(place: Path, *, durable: bool) -> Iterator[dict[str, str]]:
    """Yield an environment for Truebeat's processes; start missing services in `place`."""
    env = _environment(place)
    with ExitStack() as stack:
        if not env.get("DATABASE_URL"):
            postgres = stack.enter_context(start_postgres(place / "postgres", durable=durable))
            env["DATABASE_URL"] = postgres.url
        if not env.get("REDIS_URL"):
            redis = stack.enter_context(start_redis(place / "redis", durable=durable))
            env["REDIS_URL"] = redis.url
        yield env


def _environment(place: Path) -> dict[str, str]:
    place.mkdir(exist_ok=True)
    defaults = {
        "DEBUG": "1",
        "SECRET_KEY": _kept_secret(place / "secret-key", 50),
        "EMAIL_URL": f"filemail://{quote(str(place / 'mail'))}",
    }
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return defaults | dict(os.environ) | {"PATH": binaries}


def _kept_secret(path: Path, length: int) -> str:
    if not path.exists():
        _write_private(path, secrets.token_urlsafe(length)[:length])
    return path.read_text()


def _write_private(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)


@contextmanager
def _published(env: dict[str, str]) -> Iterator[None]:
    _write_private(UP_ENV, "".join(f"{name}={env[name]}\n" for name in SHARED))
    try:
        yield
    finally:
        UP_ENV.unlink(missing_ok=True)


def _read_env(path: Path) -> dict[str, str]:
    pairs = (line.partition("=") for line in path.read_text().splitlines())
    return {name: value for name, _, value in pairs}


# --- One at a time --------------------------------------------------------------------------------
@contextmanager
def _only_one(url: str) -> Iterator[None]:
    VAR.mkdir(exist_ok=True)
    with (VAR / "up.lock").open("a+") as lock:
        if not _take(lock):
            lock.seek(0)
            raise EmbeddedError(f"Truebeat runs here already: {lock.read().strip()}")
        lock.truncate(0)
        lock.write(f"{url} (process {os.getpid()})")
        lock.flush()
        yield


def _up_is_running() -> bool:
    if not UP_ENV.exists():
        return False
    with (VAR / "up.lock").open("a+") as lock:
        return not _take(lock)


def _take(lock: TextIO) -> bool:
    """Try for a lock that forked processes do not share, so that it ends with its owner alone."""
    try:
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _wait_for_port(port: int) -> None:
    """Make sure that web can listen, waiting for one whose supervisor was killed a moment ago."""
    deadline = time.monotonic() + (STOPPED_WITHIN if UP_ENV.exists() else 0)
    while not _is_free(port):
        if time.monotonic() > deadline:
            raise EmbeddedError(f"Port {port} is taken. Choose another: PORT={port + 1} make up")
        time.sleep(0.2)


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


# --- Steps ----------------------------------------------------------------------------------------
def _say(step: str, text: str) -> None:
    print(f"{step:<10} {text}", flush=True)


def _manage(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "manage.py"), *arguments]
    return subprocess.run(
        command, env=env, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def _migrate(env: dict[str, str]) -> None:
    """Apply the migrations; print their number, and other lines only if they ask for something."""
    done = _manage(env, "migrate", "--noinput")
    if done.returncode:
        print(done.stdout, flush=True)
        raise EmbeddedError("manage.py migrate failed; its message is above.")
    lines = done.stdout.splitlines()
    applied = sum(line.startswith("  Applying ") for line in lines)
    added = sum(line.startswith("  + ") for line in lines)
    written = f"; {added} schedules of code written" if added else ""
    _say("Migrations", (f"{applied} applied" if applied else "up to date") + written)
    for line in lines:
        if not line.startswith(MIGRATING):
            print(line, flush=True)


# Beginnings of lines that `migrate` prints each time, and of lines that are counted above.
MIGRATING = ("Operations to perform", "  Apply all", "Running migrations", "  Applying ",
             "  No migrations to apply", "Schedules of CELERY_BEAT_SCHEDULE:", "  + ")  # fmt: skip


def _load_demo_once(env: dict[str, str]) -> None:
    """Load the demo data unless this data has seen it; deleted demo rows stay deleted."""
    place = VAR if os.environ.get("DATABASE_URL") else VAR / "postgres"
    marker = place / "demo-loaded"
    if marker.exists():
        return
    done = _manage(env, "demo")
    if done.returncode == 0:
        _say("Demo data", "45 lifecycle ids, and a schedule that looks for expiring ones")
        marker.touch()
    else:
        print(done.stdout, flush=True)
        _say("Demo data", "could not be loaded (the message is above): going on without it")


def _is_healthy(url: str) -> bool:
    """Return whether web answers, and says that it has seen a beat and a worker."""
    address = f"{url}/healthz"
    with suppress(OSError), urllib.request.urlopen(address, timeout=2) as answer:  # noqa: S310
        return bool(answer.status == 200)
    return False


def _greeting(url: str, password: str) -> str:
    return f"""
  Truebeat is ready.

  Look at  {url}/admin/scheduling/   schedules and the runs they make
           {url}/healthz             the health of all services
           var/mail/                 the mails it sends
  Try      .venv/bin/python manage.py schedule list     in a second terminal
           kill -9 the worker, or beat: it comes back, and no run is lost or doubled
  Stop     Ctrl-C. The data stays in var/ (`make reset` removes it).

  {url}/admin/   user admin, password {password}
"""


def _run_procfile(env: dict[str, str]) -> int:
    multiprocessing.set_start_method("fork", force=True)  # a keeper is a child, not a pickle
    lines = parse_procfile((ROOT / "Procfile").read_text()).processes
    url = f"http://{HOST}:{env['PORT']}"
    greeting = _greeting(url, env["DEMO_ADMIN_PASSWORD"])
    terminal = Terminal(partial(_is_healthy, url), greeting)
    for name in KEPT:
        terminal.add_process(name, lines[name], env=env, cwd=str(ROOT))
    return terminal.run()


def _run_in_foreground(command: Sequence[str], env: dict[str, str]) -> int:
    """Run `command`, which has the terminal: Ctrl-C is its own to answer; SIGTERM is passed on."""
    try:
        process = popen_bound(command, signal.SIGTERM, env=env)
    except FileNotFoundError as error:
        raise EmbeddedError(f"The command {command[0]} does not exist.") from error
    for signum in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, lambda number, _: process.send_signal(number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    returncode = process.wait()
    return returncode if returncode >= 0 else 128 - returncode


def _stop_in_order_on_signals() -> None:
    """Turn the signals that end a process into an exit that stops the services first."""
    signums = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def leave(signum: int, _: FrameType | None) -> None:
        for each in signums:
            signal.signal(each, signal.SIG_IGN)
        raise SystemExit(128 + signum)

    for each in signums:
        signal.signal(each, leave)
    if "MAKELEVEL" in os.environ:  # a killed make cannot ask for an end
        follow_parent(signal.SIGTERM)
