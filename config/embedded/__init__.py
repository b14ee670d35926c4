"""Real PostgreSQL and Redis out of the virtual environment, for development and for tests.

`python -m config.embedded up` runs all of Truebeat on them; `python -m config.embedded run -- CMD`
runs one command. Production names its own services in DATABASE_URL and REDIS_URL instead.
"""

from config.embedded.postgres_server import PostgresServer, start_postgres
from config.embedded.redis_server import RedisServer, start_redis
from config.embedded.server import EmbeddedError, free_port

__all__ = [
    "EmbeddedError",
    "PostgresServer",
    "RedisServer",
    "free_port",
    "start_postgres",
    "start_redis",
]
