"""A fixture for the tests of canvases: links, chains and chords of runs."""

from collections.abc import Iterator

import pytest
import redis

from tests.jobs.canvas import heard
from tests.scheduling.child import forget_tracers


@pytest.fixture
def canvas_redis(redis_client: redis.Redis) -> Iterator[redis.Redis]:
    """Redis, in which runs leave no message: every follow-up is a row."""
    heard.clear()
    yield redis_client
    lanes = [str(key) for key in redis_client.keys("celery*")]
    forget_tracers()
    assert lanes == []
