"""The engine's settings for any project: `from scheduling.defaults import *` in its settings.

The first part configures Celery. The second part has the engine's own settings, which are read from
the environment. A project sets other values below that line.
"""

import sys as _sys
from datetime import timedelta as _timedelta

import django_stubs_ext as _django_stubs_ext
import environ as _environ

_env = _environ.Env()

# The engine's classes use Django's generic classes with types, such as ModelAdmin[Run].
_django_stubs_ext.monkeypatch()

# --- Celery ---------------------------------------------------------------------------------------
CELERY_BROKER_TRANSPORT = "scheduling.broker.transport:Transport"
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "queue_order_strategy": "priority",
    "priority_steps": [0, 3, 6, 9],
    "socket_timeout": 15,
    "socket_connect_timeout": 5,
    "socket_keepalive": True,
}
CELERY_RESULT_BACKEND = "scheduling.celery_app.results:Backend"
CELERY_RESULT_EXTENDED = True
CELERY_TASK_DEFAULT_PRIORITY = 6
CELERY_BEAT_SCHEDULER = "scheduling.beat:Scheduler"
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_DISABLE_PREFETCH = True
CELERY_WORKER_CANCEL_LONG_RUNNING_TASKS_ON_CONNECTION_LOSS = False
# Without this, Celery closes database connections around every task.
CELERY_DB_REUSE_MAX = _sys.maxsize // 4

# --- Scheduling -----------------------------------------------------------------------------------
# Whether a connection prepares the statements that every run needs, so that Postgres seldom plans
# them (`scheduling.postgres.prepared`); None: if no pooler is found.
PREPARED_STATEMENTS: bool | None = _env.bool("PREPARED_STATEMENTS", default=None)
# Hints of one queue and priority that may lie in Redis at once; the backlog waits in Postgres.
QUEUE_WINDOW = _env.int("QUEUE_WINDOW", default=10_000)
# Attempts of a run whose job sets no number of its own.
DEFAULT_MAX_ATTEMPTS = _env.int("DEFAULT_MAX_ATTEMPTS", default=3)
# A worker that has not renewed a run's lease for this long has lost it.
RUN_LEASE = _timedelta(seconds=_env.float("RUN_LEASE_SECONDS", default=30))
# How long a job of a cancelled run may run on before it is killed.
CANCEL_GRACE = _timedelta(seconds=_env.float("CANCEL_GRACE_SECONDS", default=10))
# How long a stopping worker lets its runs go on before it hands them back.
SHUTDOWN_GRACE = _timedelta(seconds=_env.float("SHUTDOWN_GRACE_SECONDS", default=50))
# A worker that could take messages, but has taken none for this long, restarts itself.
STUCK_AFTER = _timedelta(seconds=_env.float("STUCK_AFTER_SECONDS", default=30))
# Above these a worker takes no work: load average per core, memory and CPU in per cent; 0 is off.
MAX_LOAD = _env.float("MAX_LOAD", default=0)
MAX_MEMORY = _env.float("MAX_MEMORY", default=0)
MAX_CPU = _env.float("MAX_CPU", default=0)
# The wait after a run's first failed attempt; it doubles with each, up to an hour.
RETRY_BACKOFF = _timedelta(seconds=_env.float("RETRY_BACKOFF_SECONDS", default=10))
# How long before its deadline a waiting run is raised to high.
DEADLINE_NEAR = _timedelta(seconds=_env.float("DEADLINE_NEAR_SECONDS", default=60))
# Waiting runs are raised from low to medium after this long, and from medium to high after twice as
# long, so that no run waits for ever; 0: never.
AGE_AFTER = _timedelta(seconds=_env.float("AGE_AFTER_SECONDS", default=600))
# Days for which a finished run is kept, with its result; 0: for ever.
KEEP_RUNS = _timedelta(days=min(_env.int("KEEP_RUNS_DAYS", default=90), 36_500))
KEEP_FAILED = _timedelta(days=min(_env.int("KEEP_FAILED_DAYS", default=365), 36_500))
# Mail addresses and https URLs that are notified of failures of schedules without an owner.
ALERTS_TO = _env.list("ALERTS_TO", default=[])
# A failure group is sent at most this often; the next message counts the failures in between.
ALERT_EVERY = _timedelta(seconds=_env.float("ALERT_EVERY_SECONDS", default=14_400))
# Messages about all groups are sent at most this often.
ALERT_PACE = _timedelta(seconds=_env.float("ALERT_PACE_SECONDS", default=300))
# After this many failures in a row of a schedule or a task, owners are notified again; 0: never.
ALERT_AFTER_FAILURES = _env.int("ALERT_AFTER_FAILURES", default=3)
# A failure after this long without one counts as news: the group is back.
ALERT_QUIET = _timedelta(days=_env.float("ALERT_QUIET_DAYS", default=7))
# Whether webhooks may be sent to private addresses and without TLS: for development only.
ALERT_ALLOW_PRIVATE = _env.bool("ALERT_ALLOW_PRIVATE", default=False)
# Private networks that webhooks and triggers may lead to, such as 10.1.2.0/24.
OUTGOING_ALLOW = _env.list("OUTGOING_ALLOW", default=[])
# Fernet keys that encrypt secrets in the database, the newest first.
SECRETS_KEYS = _env.list("SECRETS_KEYS", default=[])
# Tasks (names, or patterns such as `reports.*`) whose calls stay Celery's plain messages. Calls of
# all other tasks are rows in the ledger.
UNTRACKED_TASKS = _env.list("UNTRACKED_TASKS", default=[])
# Whether workers run plain messages of other tasks: any program with access to Redis can send them.
ACCEPT_UNTRACKED = _env.bool("ACCEPT_UNTRACKED", default=_env.bool("DEBUG", default=False))
# Whether workers obey unsigned commands of remote control; `celery control` signs its commands.
ACCEPT_UNSIGNED_CONTROL = _env.bool(
    "ACCEPT_UNSIGNED_CONTROL", default=_env.bool("DEBUG", default=False)
)
