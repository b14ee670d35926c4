"""System checks of settings: each message names the line to change."""

from collections.abc import Iterator, Sequence
from typing import Any

from celery import current_app
from celery.utils.imports import symbol_by_name
from django.apps import AppConfig, apps
from django.conf import settings
from django.core import checks
from django.core.checks import CheckMessage, Error, Tags, register
from django.db import DatabaseError, connection, router
from django.db.backends.postgresql.psycopg_any import is_psycopg3
from kombu.serialization import prepare_accept_content

from scheduling import defaults
from scheduling.celery_app.app import App
from scheduling.errors import EnqueueError
from scheduling.models import Priority
from scheduling.task_options import check_queue

LEDGER = "default"
APPS = ("scheduling", "django_celery_beat", "django_celery_results")
# The parts of Celery that Truebeat replaces, by their names in Celery's configuration.
PARTS = {
    "beat_scheduler": "scheduling.beat:Scheduler",
    "result_backend": "scheduling.celery_app.results:Backend",
    "broker_transport": "scheduling.broker.transport:Transport",
}
NO_POOLS = ("gevent", "eventlet")
READ_COMMITTED = "read committed"
JSON = "application/json"
LANES = sorted(int(step) for step in Priority)


@register()
def check_celery_app(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """Celery's current app must be Truebeat's: it writes the runs and makes tasks Jobs."""
    if is_ours():
        return []
    app = current_app._get_current_object()  # type: ignore[attr-defined]
    if app.main == "default":
        problem = "No module that is imported at start-up makes a Celery app."
    else:
        kind = type(app)
        problem = f"The Celery app {app.main!r} is a {kind.__module__}.{kind.__qualname__}."
    return [
        Error(
            problem,
            hint="In the project's celery.py: from scheduling.celery_app.app import App, and"
            f" app = App({app.main!r}); in its __init__.py: from .celery import app as celery_app.",
            id="scheduling.E005",
        )
    ]


def fit() -> bool:
    """Return whether the settings are fit for a query of the ledger.

    If they are not, the checks here report the reason, and a query would only fail as well.
    """
    needed = (check_celery_app, check_engine_settings, check_time, check_database, check_routers)
    return not any(check(None) for check in needed)


def is_ours() -> bool:
    return isinstance(current_app._get_current_object(), App)  # type: ignore[attr-defined]


@register()
def check_parts(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """The settings must name the parts with which Truebeat replaces Celery's."""
    return [
        Error(
            f"CELERY_{name.upper()} is {current_app.conf[name]!r}.",
            hint=f"Set it to {expected!r}: without it runs are lost or doubled.",
            id="scheduling.E001",
        )
        for name, expected in PARTS.items()
        if not _is_part(current_app.conf[name], expected)
    ]


def _is_part(value: Any, expected: str) -> bool:
    """Return whether a setting names the expected class, or a class that is derived from it."""
    if value == expected:
        return True
    try:
        found = symbol_by_name(value)
        return isinstance(found, type) and issubclass(found, symbol_by_name(expected))
    except (ImportError, AttributeError, ValueError, TypeError):
        return False


@register()
def check_engine_settings(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """The engine needs its own settings."""
    own = [name for name in vars(defaults) if name.isupper() and not name.startswith("CELERY_")]
    missing = [name for name in (*own, "REDIS_URL") if not hasattr(settings, name)]
    if not missing:
        return []
    return [
        Error(
            f"The settings have no {', '.join(missing)}.",
            hint="Begin the settings with `from scheduling.defaults import *`, and set REDIS_URL to"
            " the value of CELERY_BROKER_URL.",
            id="scheduling.E006",
        )
    ]


@register()
def check_time(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """Every instant of the ledger is aware."""
    found: list[CheckMessage] = []
    if not settings.USE_TZ:
        hint = "Set USE_TZ = True: the ledger's instants have a time zone."
        found.append(Error("USE_TZ is off.", hint=hint, id="scheduling.E007"))
    try:
        current_app.timezone  # noqa: B018  (it raises if the zone is unknown)
    except Exception as error:  # zoneinfo raises one of several
        found.append(
            Error(
                f"CELERY_TIMEZONE {current_app.conf.timezone!r} is not a time zone: {error}",
                hint="Give an IANA name, such as CELERY_TIMEZONE = TIME_ZONE.",
                id="scheduling.E007",
            )
        )
    return found


@register()
def check_database(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """The ledger is one PostgreSQL database, whose transactions end when the engine ends them."""
    return [
        Error(problem, hint=hint, id="scheduling.E008") for problem, hint in _database_problems()
    ]


def _database_problems() -> Iterator[tuple[str, str]]:
    where = f"DATABASES[{LEDGER!r}]"
    if connection.vendor != "postgresql":
        yield (
            f"{where} is not PostgreSQL: its ENGINE is {connection.settings_dict['ENGINE']!r}.",
            "Set ENGINE to 'django.db.backends.postgresql'. Other databases may stand beside it.",
        )
        return
    if not is_psycopg3:
        yield "psycopg 3 is not installed.", "Install psycopg[binary]; psycopg2 may stay beside it."
    if not connection.settings_dict["AUTOCOMMIT"]:
        yield (
            f"{where} has AUTOCOMMIT off.",
            "Remove this: the engine's work outside of transactions would never be committed.",
        )


@register()
def check_routers(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """A run, its schedule and its result are written in one transaction."""
    away: dict[str, str] = {}
    for app in filter(apps.is_installed, APPS):
        for model in apps.get_app_config(app).get_models():
            for found in (router.db_for_write(model), router.db_for_read(model)):
                if found != LEDGER:
                    away[app] = f"to the database {found!r}"
            if not router.allow_migrate_model(LEDGER, model):
                away.setdefault(app, f"away from the database {LEDGER!r}")
    return [
        Error(
            f"DATABASE_ROUTERS send the models of {app} {where}.",
            hint=f"Let the routers leave {', '.join(APPS)} to {LEDGER!r}: db_for_read and"
            " db_for_write return None for them, allow_migrate None or True.",
            id="scheduling.E009",
        )
        for app, where in away.items()
    ]


@register()
def check_messages(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """The settings of Celery's broker must fit the engine's own messages and clients."""
    found: list[CheckMessage] = []
    conf = current_app.conf
    accepted = prepare_accept_content(conf.accept_content)
    if accepted is not None and JSON not in accepted:
        found.append(
            Error(
                f"accept_content is {list(conf.accept_content)!r}: workers would refuse every hint,"
                " which is JSON, and no run would start.",
                hint='Add "json" to CELERY_ACCEPT_CONTENT.',
                id="scheduling.E020",
            )
        )
    if conf.broker_use_ssl:
        found.append(
            Error(
                "CELERY_BROKER_USE_SSL is set: only Celery's own connections would use it.",
                hint="Remove it, and let REDIS_URL begin with rediss://: it has options for"
                " certificates (docs/operations.md, Ways to Redis).",
                id="scheduling.E021",
            )
        )
    found += [
        Error(str(error), hint="Rename it in CELERY_TASK_QUEUES.", id="scheduling.E022")
        for queue in current_app.amqp.Queues(conf.task_queues)
        if (error := _refusal_of(queue))
    ]
    return found


def _refusal_of(queue: str) -> EnqueueError | None:
    try:
        check_queue(queue)
    except EnqueueError as error:
        return error
    return None


@register()
def check_lanes(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """Beat must write hints to the Redis that workers read."""
    conf, found = current_app.conf, list[CheckMessage]()
    mine = getattr(settings, "REDIS_URL", None)
    for name, url in (("read", conf.broker_read_url), ("write", conf.broker_write_url)):
        if mine is not None and url != mine:
            found.append(
                Error(
                    f"Celery would {name} messages at another address than REDIS_URL names.",
                    hint="Set REDIS_URL to the value of CELERY_BROKER_URL, and remove"
                    " CELERY_BROKER_READ_URL and CELERY_BROKER_WRITE_URL.",
                    id="scheduling.E010",
                )
            )
            break
    return found


@register()
def check_worker(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """Settings with which a worker would lose its leases, or keep work from other workers."""
    conf, found = current_app.conf, list[CheckMessage]()
    if str(conf.worker_pool).partition(":")[0] in NO_POOLS:
        found.append(
            Error(
                f"CELERY_WORKER_POOL is {conf.worker_pool!r}, in which one job can keep the worker"
                " from renewing its leases.",
                hint="Set it to 'prefork' or 'threads'.",
                id="scheduling.E011",
            )
        )
    options = conf.broker_transport_options or {}
    loose = {
        "CELERY_WORKER_PREFETCH_MULTIPLIER = 1": conf.worker_prefetch_multiplier == 1,
        "CELERY_WORKER_DISABLE_PREFETCH = True": conf.worker_disable_prefetch,
        "CELERY_BROKER_TRANSPORT_OPTIONS['queue_order_strategy'] = 'priority'": options.get(
            "queue_order_strategy"
        )
        == "priority",
        f"CELERY_BROKER_TRANSPORT_OPTIONS['priority_steps'] = {LANES}": set(LANES)
        <= set(options.get("priority_steps") or LANES),
    }
    if lines := [line for line, kept in loose.items() if not kept]:
        found.append(
            checks.Warning(
                "Workers would keep hints that other workers could run, or ignore priorities.",
                hint=f"Set {'; '.join(lines)}, as scheduling.defaults does.",
                id="scheduling.W007",
            )
        )
    return found


@register(Tags.database)
def check_isolation(
    app_configs: Sequence[AppConfig] | None, databases: Sequence[str] | None = None, **_: Any
) -> list[CheckMessage]:
    """Beats and workers that wait for a locked row must see its new values afterwards."""
    if not databases or LEDGER not in databases or connection.vendor != "postgresql":
        return []
    try:
        with connection.cursor() as cursor:
            cursor.execute("SHOW transaction_isolation")
            (level,) = cursor.fetchone()
    except DatabaseError:  # other checks, or the command, report it
        return []
    if level == READ_COMMITTED:
        return []
    return [
        Error(
            f"Transactions of the ledger are {level!r}.",
            hint="Remove isolation_level from DATABASES['default']['OPTIONS'], or the"
            " default_transaction_isolation of its user or database.",
            id="scheduling.E008",
        )
    ]
