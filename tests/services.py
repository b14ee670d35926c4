"""A pytest plugin (`-p tests.services`): real PostgreSQL and Redis, before settings are read.

The process that pytest is called in starts them and names them in its environment, which its
workers inherit. Each worker has a database of its own on both: pytest-django's, and a number.
DATABASE_URL and REDIS_URL, when set, are used instead; their Redis databases from the named one on
are emptied by the tests.
"""

import os
import shutil
import signal
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import pytest

# Set before `config` is imported, which sets the project's own settings by default.
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")

from config.embedded import start_postgres, start_redis
from scheduling.broker.address import connection_options

SETTINGS = {
    "SECRET_KEY": "only-for-tests-" + "0123456789" * 4,
    "DEBUG": "0",
    "ALLOWED_HOSTS": "localhost,127.0.0.1,testserver",
    "EMAIL_URL": "memorymail://",
    "TIME_ZONE": "UTC",
}


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: Sequence[str]
) -> None:
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        number = 1 + int(worker.removeprefix("gw"))
        os.environ["REDIS_URL"] = redis_database(os.environ["REDIS_URL"], number)
        return
    os.environ.update(SETTINGS)
    # `collectstatic` writes here; whitenoise warns if the directory is missing.
    (early_config.rootpath / "var" / "static").mkdir(parents=True, exist_ok=True)
    options = parser.parse_known_args(list(args))
    if options.help or options.version:  # settings are read, nothing is connected to
        os.environ.setdefault("DATABASE_URL", "postgres://127.0.0.1/none")
        os.environ.setdefault("REDIS_URL", "redis://127.0.0.1/0")
        return
    # A time-out, or a CI that ends the tests, stops the services like Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    services = ExitStack()
    early_config.add_cleanup(services.close)
    start(services)


def start(services: ExitStack) -> None:
    """Start the services that the environment does not name; closing `services` removes them."""
    place = Path(tempfile.mkdtemp(prefix="truebeat-tests-"))
    services.callback(shutil.rmtree, place)
    if not os.environ.get("DATABASE_URL"):
        postgres = services.enter_context(start_postgres(place / "postgres", durable=False))
        os.environ["DATABASE_URL"] = postgres.url
    if not os.environ.get("REDIS_URL"):
        redis = services.enter_context(start_redis(place / "redis", durable=False))
        os.environ["REDIS_URL"] = redis.url


def redis_database(url: str, offset: int) -> str:
    """Return `url` with its database number raised by `offset`."""
    number = connection_options(url).get("db", 0) + offset
    parts = urlsplit(url)
    if parts.scheme == "unix":
        return f"unix://{parts.netloc}{parts.path}?db={number}"
    return urlunsplit(parts._replace(path=f"/{number}"))
