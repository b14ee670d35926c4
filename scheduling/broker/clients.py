"""Makes the engine's own Redis clients from REDIS_URL; kombu makes the others."""

from typing import Any

import redis
from django.conf import settings

from scheduling.broker.address import connection_options


def client(*, socket_timeout: float, socket_connect_timeout: float | None = None) -> "redis.Redis":
    """Return a client of REDIS_URL whose calls are tried once; time-outs in seconds."""
    options: dict[str, Any] = {
        "socket_timeout": socket_timeout,
        "socket_connect_timeout": socket_connect_timeout or socket_timeout,
    }
    pool = redis.ConnectionPool(**options | connection_options(settings.REDIS_URL))
    return redis.Redis.from_pool(pool)
