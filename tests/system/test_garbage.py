"""Messages of every odd shape: none ends, blocks or slows a worker of one process.

The messages are made from seeds (`chaos/garbage.py`); `make chaos` pushes more, for longer.
"""

import time
from collections.abc import Iterator
from random import Random

import psutil
import pytest
import redis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from chaos.garbage import Garbage
from scheduling.beat import dispatch
from scheduling.jobs import enqueue
from scheduling.models import Run, State
from scheduling.runs.hints import Broker
from tests.jobs.tasks import add
from tests.system.processes import System, SystemProcess
from tests.waiting import wait_for

TASKS = (add.name, "unknown.task")
BATCH = 150  # messages
SECONDS = 10.0  # of batches, for each of the two workers


@pytest.fixture(params=["0", "1"], ids=["ledger_only", "plain_ones_too"])
def worker(system: System, request: pytest.FixtureRequest) -> SystemProcess:
    return system.ready_worker(1, ACCEPT_UNTRACKED=request.param)


def run_one(worker: SystemProcess, within: float = 15) -> None:
    """Have the worker run something, twice in a row: its only place must be free afterwards."""
    assert not worker.ended(), "the worker ended"
    for _ in range(2):
        run = Run.objects.filter(pk=enqueue(add, (1, 2)).pk)
        dispatch.publish(Broker())
        wait_for(
            run.filter(state=State.SUCCEEDED).exists,
            timeout=within,
            message="the worker did not run the due run",
        )
    assert not worker.ended()


def push(client: redis.Redis, seed: int) -> None:
    garbage, pipeline = Garbage(Random(seed), TASKS), client.pipeline(transaction=False)
    hints: list[bytes] = client.lrange("celery", 0, 0)  # type: ignore[assignment]
    for number in range(BATCH):
        like = hints[0] if hints and number % 5 == 0 else None
        lane = Random(seed + number).choice(("celery", "celery\x06\x163", "celery\x06\x166"))
        pipeline.lpush(lane, garbage.message(like))
    for _ in range(10):
        channel, said = garbage.broadcast()
        pipeline.publish(f"/{client.connection_pool.connection_kwargs['db']}.{channel}", said)
        tag = f"{garbage.message()[:20]!r}"
        pipeline.hset("unacked", tag, garbage.note())
        pipeline.zadd("unacked_index", {tag: 1})
    pipeline.execute()


def test_garbage_of_all_shapes_ends_blocks_and_slows_no_worker(
    worker: SystemProcess, redis_client: redis.Redis
) -> None:
    until = time.monotonic() + SECONDS
    parent = psutil.Process(worker.pid).create_time()

    @settings(
        max_examples=1000, deadline=None, derandomize=True, database=None,
        phases=[Phase.generate], suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(seed=st.integers(0, 2**32))
    def batches(seed: int) -> None:
        if time.monotonic() < until:
            push(redis_client, seed)
            run_one(worker)

    run_one(worker)
    batches()
    assert psutil.Process(worker.pid).create_time() == parent
    assert worker.log.stat().st_size < 2_000_000


@pytest.fixture
def kinds(redis_client: redis.Redis) -> Iterator[None]:
    """Keys of other kinds where the broker keeps lists and its own notes."""
    redis_client.set("celery", "no list")
    redis_client.hset("celery\x06\x163", "a", "b")
    redis_client.set("unacked", "no hash")
    redis_client.set("unacked_index", "no set")
    yield
    redis_client.flushdb()


@pytest.mark.usefixtures("kinds")
def test_keys_of_other_kinds_stop_no_worker(
    worker: SystemProcess, redis_client: redis.Redis
) -> None:
    run_one(worker)
    assert worker.said("lane_unusable")
    redis_client.delete("celery", "celery\x06\x163")
    run_one(worker)
