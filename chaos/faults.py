"""The faults: each kind is a function that bears its name.

A fault says what it did, or "" where there was nothing to do it to.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from random import Random

import psycopg
import redis

from chaos.garbage import Garbage
from chaos.ground import LANES, Ground, Service, faketime
from chaos.network import MANNERS
from chaos.plan import KINDS, SKEWS, Fault
from chaos.story import Done


def commit(ground: Ground, fault: Fault) -> Done:
    """Do a fault, to its end."""
    began = time.time()
    try:
        what = ACTS[fault.kind](ground, fault, Random(fault.draw))
    except (psycopg.OperationalError, redis.RedisError):
        what = ""  # the service is down already
    return Done(fault.kind, str(fault.target), began, time.time(), what)


LOCK = """
SELECT id FROM scheduling_run WHERE state = 'running'
 ORDER BY started_at LIMIT %s FOR UPDATE SKIP LOCKED
"""


MOST_OFF = 60.0  # seconds, of the ledger's clock


@contextmanager
def _alone_with(service: Service) -> Iterator[Service]:
    with service.lock:
        yield service


# --- Processes -----------------------------------------------------------------------------------


def _kill(service: Service, fault: Fault, *, group: bool) -> str:
    with _alone_with(service):
        if service.ended():
            return ""
        service.expect_end(fault.lasts)
        service.signal(signal.SIGKILL, group=group)
        return f"{service.name} {service.pid}"


def kill_beat(ground: Ground, fault: Fault, random: Random) -> str:
    return _kill(ground.beats[fault.target], fault, group=True)


def kill_beats(ground: Ground, fault: Fault, random: Random) -> str:
    """Kill all beats: what comes due meanwhile is for catch-up to decide."""
    return ", ".join(filter(None, (_kill(beat, fault, group=True) for beat in ground.beats)))


def kill_worker(ground: Ground, fault: Fault, random: Random) -> str:
    return _kill(ground.workers[fault.target], fault, group=False)


def kill_machine(ground: Ground, fault: Fault, random: Random) -> str:
    return _kill(ground.workers[fault.target], fault, group=True)


def kill_child(ground: Ground, fault: Fault, random: Random) -> str:
    children = ground.workers[fault.target].children()
    if not children:
        return ""
    pid = random.choice(children)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return f"{ground.workers[fault.target].name} {pid}"


def stop_worker(ground: Ground, fault: Fault, random: Random) -> str:
    service = ground.workers[fault.target]
    with _alone_with(service):
        if service.ended():
            return ""
        service.expect_end(fault.lasts)
        service.signal(signal.SIGTERM, group=False)
        return f"{service.name} {service.pid}"


def _freeze(pid_of: Callable[[int], None], seconds: float) -> None:
    pid_of(signal.SIGSTOP)
    time.sleep(seconds)
    pid_of(signal.SIGCONT)


def _freeze_service(service: Service, fault: Fault) -> str:
    with _alone_with(service):
        if service.ended():
            return ""
        _freeze(lambda number: service.signal(number, group=True), fault.lasts)
        return f"{service.name} {service.pid}"


def freeze_beat(ground: Ground, fault: Fault, random: Random) -> str:
    return _freeze_service(ground.beats[fault.target], fault)


def freeze_worker(ground: Ground, fault: Fault, random: Random) -> str:
    return _freeze_service(ground.workers[fault.target], fault)


def freeze_child(ground: Ground, fault: Fault, random: Random) -> str:
    children = ground.workers[fault.target].children()
    if not children:
        return ""
    pid = random.choice(children)

    def tell(number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    _freeze(tell, fault.lasts)
    return f"{ground.workers[fault.target].name} {pid}"


def skew_beat(ground: Ground, fault: Fault, random: Random) -> str:
    """Start a beat anew with a clock that is off, or that is right again."""
    if faketime() is None:
        return ""
    service = ground.beats[fault.target]
    service.skew = random.choice(SKEWS)
    return _kill(service, fault, group=True) and f"{service.name} by {service.skew} s"


# --- Networks ------------------------------------------------------------------------------------


def _cut(service: Service, fault: Fault, random: Random, *servers: str) -> str:
    """Cut a service off, in some manner, however it fares meanwhile: it may be killed, too."""
    ways = [service.ways[server] for server in servers]
    if any(way.cut for way in ways):
        return ""
    manner = random.choice(MANNERS)
    try:
        for way in ways:
            way.cut_off(manner)
        time.sleep(fault.lasts)
    finally:
        for way in ways:
            way.mend()
    return f"{service.name}, {manner}"


def beat_without_postgres(ground: Ground, fault: Fault, random: Random) -> str:
    return _cut(ground.beats[fault.target], fault, random, "postgres")


def beat_without_redis(ground: Ground, fault: Fault, random: Random) -> str:
    return _cut(ground.beats[fault.target], fault, random, "redis")


def beat_without_both(ground: Ground, fault: Fault, random: Random) -> str:
    return _cut(ground.beats[fault.target], fault, random, "postgres", "redis")


def worker_without_postgres(ground: Ground, fault: Fault, random: Random) -> str:
    return _cut(ground.workers[fault.target], fault, random, "postgres")


def worker_without_redis(ground: Ground, fault: Fault, random: Random) -> str:
    return _cut(ground.workers[fault.target], fault, random, "redis")


def worker_without_both(ground: Ground, fault: Fault, random: Random) -> str:
    return _cut(ground.workers[fault.target], fault, random, "postgres", "redis")


def _forget(service: Service, random: Random) -> str:
    """Let a service's connections be dead for good, as where a router has forgotten them."""
    server = random.choice(["postgres", "redis"])
    service.ways[server].swallow()
    return f"{service.name}, {server}"


def beat_forgotten(ground: Ground, fault: Fault, random: Random) -> str:
    return _forget(ground.beats[fault.target], random)


def worker_forgotten(ground: Ground, fault: Fault, random: Random) -> str:
    return _forget(ground.workers[fault.target], random)


# --- Servers -------------------------------------------------------------------------------------


def restart_redis(ground: Ground, fault: Fault, random: Random) -> str:
    """Kill it; it comes back empty."""
    with ground.servers["redis"]:
        ground.redis_server.kill()
        time.sleep(fault.lasts)
        ground.redis_server.start()
    return "killed"


def freeze_redis(ground: Ground, fault: Fault, random: Random) -> str:
    with ground.servers["redis"]:
        _freeze(lambda number: os.kill(ground.redis_server.pid, number), fault.lasts)
    return "frozen"


def flush_redis(ground: Ground, fault: Fault, random: Random) -> str:
    ground.redis.flushall()
    return "flushed"


def restart_postgres(ground: Ground, fault: Fault, random: Random) -> str:
    with ground.servers["postgres"]:
        ground.postgres.stop()
        time.sleep(fault.lasts)
        ground.postgres.start()
    return "stopped"


def crash_postgres(ground: Ground, fault: Fault, random: Random) -> str:
    """Shut it down at once, as a crash would: it recovers from its log when it starts."""
    with ground.servers["postgres"]:
        os.kill(ground.postgres.pid, signal.SIGQUIT)
        ground.postgres.stop()
        time.sleep(fault.lasts)
        ground.postgres.start()
    return "crashed"


TERMINATE = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
 WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND random() < %s
"""


def terminate_backends(ground: Ground, fault: Fault, random: Random) -> str:
    with ground.connect() as connection:
        row = connection.execute(TERMINATE, [random.choice([0.2, 0.6, 1.0])]).fetchone()
    return f"{row[0]} connections" if row else ""


def step_clock(ground: Ground, fault: Fault, random: Random) -> str:
    """Step the ledger's clock by up to a minute, forward or back, never further off than that."""
    size = random.choice([0.5, 5.0, MOST_OFF]) * random.uniform(0.3, 1.0) * random.choice([-1, 1])
    ahead = sum(step.size for step in ground.steps)
    if abs(ahead + size) > MOST_OFF:
        size = -size
    return f"{size:+.3f} s" if ground.step_clock(round(size, 3)) else ""


# --- Messages ------------------------------------------------------------------------------------


def _messages(ground: Ground, random: Random) -> tuple[str, list[bytes]]:
    """Return a lane that has messages, and some of them."""
    lanes = [lane for lane in LANES if ground.redis.llen(lane)]
    if not lanes:
        return "", []
    lane = random.choice(lanes)
    there: list[bytes] = ground.redis.lrange(lane, 0, -1)  # type: ignore[assignment]
    return lane, random.sample(there, min(len(there), random.randint(1, 20)))


def lock_rows(ground: Ground, fault: Fault, random: Random) -> str:
    """Hold rows of runs that are at work in a transaction of another client's."""
    with ground.connect() as connection, connection.transaction():
        connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        locked = connection.execute(LOCK, [random.randint(1, 20)]).rowcount
        if locked:
            time.sleep(fault.lasts)
    return f"{locked} runs" if locked else ""


def double_hints(ground: Ground, fault: Fault, random: Random) -> str:
    """Put copies of hints into their lists; where these are empty, of hints that were there."""
    lane, found = _wait_for_messages(ground, random)
    for _ in range(random.randint(1, 3)):
        if found:
            ground.redis.lpush(lane, *found)
    return f"{len(found)} hints" if found else ""


def drop_hints(ground: Ground, fault: Fault, random: Random) -> str:
    """Take hints out of their lists, and forget which ones workers have taken."""
    lane, found = _wait_for_messages(ground, random)
    before = ground.redis.llen(lane) if lane else 0
    for message in found:
        ground.redis.lrem(lane, 1, message)  # type: ignore[arg-type]
    ground.redis.delete("unacked", "unacked_index")
    return f"up to {len(found)} of {before} hints" if found else ""


def _wait_for_messages(ground: Ground, random: Random) -> tuple[str, list[bytes]]:
    """Look until there are some: on a quiet system they stay for a millisecond."""
    until = time.monotonic() + 1.0
    while True:
        lane, found = _messages(ground, random)
        if found or time.monotonic() > until:
            return lane, found


# Plain messages of it would run where workers accept them: they must leave no evidence.
NO_TASK = ("chaos.tasks.unknown",)


def garbage_hints(ground: Ground, fault: Fault, random: Random) -> str:
    """Push messages of all odd shapes, and hints that name another attempt or nobody's run."""
    garbage = Garbage(random, NO_TASK)
    payloads = [garbage.message() for _ in range(random.randint(50, 300))]
    lane, found = _wait_for_messages(ground, random)
    for message in found:
        payloads.append(message.replace(b'"run_attempt": 1', b'"run_attempt": 2'))
        payloads.append(message.replace(b'"run_attempt": 1', b'"run_attempt": -7'))
        payloads.append(message[: len(message) // 2])
    pipeline = ground.redis.pipeline(transaction=False)
    pipeline.lpush(lane or LANES[2], *payloads)
    for number in range(10):
        channel, said = garbage.broadcast()
        pipeline.publish(f"/0.{channel}", said)
        pipeline.hset("unacked", f"garbage {number}", garbage.note())
        pipeline.zadd("unacked_index", {f"garbage {number}": 1})
    pipeline.execute()
    return f"{len(payloads)} messages"


ACTS: dict[str, Callable[[Ground, Fault, Random], str]] = {kind: globals()[kind] for kind in KINDS}
