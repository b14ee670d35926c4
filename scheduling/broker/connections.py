"""kombu's connection to Redis, with short pauses between its tries to reconnect."""

from typing import Any

from celery.app import amqp
from kombu import Connection as KombuConnection
from kombu.utils.objects import cached_property

PAUSE_STEP = 1.0  # seconds that each pause between two tries is longer than the last
PAUSE_MAX = 5.0  # seconds; kombu waits up to 30, but work must go on soon after Redis is back


class Connection(KombuConnection):
    """Tries to connect at least every PAUSE_MAX seconds."""

    app: Any = None  # the transport finds the worker's intake and gate by it

    def _ensure_connection(self, *args: Any, **options: Any) -> Any:
        pauses = {"interval_start": PAUSE_STEP, "interval_step": PAUSE_STEP}
        options = {**pauses, "interval_max": PAUSE_MAX, **options}
        return super()._ensure_connection(*args, **options)


class AMQP(amqp.AMQP):
    """Celery's factory of connections and messages."""

    @cached_property
    def Connection(self) -> Any:
        return self.app.subclass_with_self(Connection, keep_reduce=True)
