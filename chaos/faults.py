"""The faults: each kind is a function that bears its name.

A fault returns a description of its effect, or "" without a target.
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
from chaos.network import MANNERS
from chaos.plan import KINDS, SKEWS, Fault
from chaos.story import Done
from chaos.testbed import LANES, SupervisedProcess, Testbed, faketime


def commit(testbed: Testbed, fault: Fault) -> Done:
    """Do a fault, to its end."""
    began = time.time()
    try:
        what = ACTS[fault.kind](testbed, fault, Random(fault.draw))
    except (psycopg.OperationalError, redis.RedisError):
        what = ""  # the service is down already
    return Done(fault.kind, str(fault.target), began, time.time(), what)


LOCK = """
SELECT id FROM scheduling_run WHERE state = 'running'
 ORDER BY started_at LIMIT %s FOR UPDATE SKIP LOCKED
"""


MOST_OFF = 60.0  # seconds, of the ledger's clock


@contextmanager
def _alone_with(service: SupervisedProcess) -> Iterator[SupervisedProcess]:
    with service.lock:
        yield service


# --- Processes -----------------------------------------------------------------------------------


def _kill(service: SupervisedProcess, fault: Fault, *, group: bool) -> str:
    with _alone_with(service):
        if service.ended():
            return ""
        service.expect_end(fault.lasts)
        service.signal(signal.SIGKILL, group=group)
        return f"{service.name} {service.pid}"


def kill_beat(testbed: Testbed, fault: Fault, random: Random) -> str:
    return _kill(testbed.beats[fault.target], fault, group=True)


def kill_beats(testbed: Testbed, fault: Fault, random: Random) -> str:
    """Kill all beats: catch-up decides about occurrences that come due meanwhile."""
    return ", ".join(filter(None, (_kill(beat, fault, group=True) for beat in testbed.beats)))


def kill_worker(testbed: Testbed, fault: Fault, random: Random) -> str:
    return _kill(testbed.workers[fault.target], fault, group=False)


def kill_machine(testbed: Testbed, fault: Fault, random: Random) -> str:
    return _kill(testbed.workers[fault.target], fault, group=True)


def kill_child(testbed: Testbed, fault: Fault, random: Random) -> str:
    children = testbed.workers[fault.target].children()
    if not children:
        return ""
    pid = random.choice(children)
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    return f"{testbed.workers[fault.target].name} {pid}"


def stop_worker(testbed: Testbed, fault: Fault, random: Random) -> str:
    service = testbed.workers[fault.target]
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


def _freeze_service(service: SupervisedProcess, fault: Fault) -> str:
    with _alone_with(service):
        if service.ended():
            return ""
        _freeze(lambda number: service.signal(number, group=True), fault.lasts)
        return f"{service.name} {service.pid}"


def freeze_beat(testbed: Testbed, fault: Fault, random: Random) -> str:
    return _freeze_service(testbed.beats[fault.target], fault)


def freeze_worker(testbed: Testbed, fault: Fault, random: Random) -> str:
    return _freeze_service(testbed.workers[fault.target], fault)


def freeze_child(testbed: Testbed, fault: Fault, random: Random) -> str:
    children = testbed.workers[fault.target].children()
    if not children:
        return ""
    pid = random.choice(children)

    def tell(number: int) -> None:
        with suppress(ProcessLookupError):
            os.kill(pid, number)

    _freeze(tell, fault.lasts)
    return f"{testbed.workers[fault.target].name} {pid}"


def skew_beat(testbed: Testbed, fault: Fault, random: Random) -> str:
    """Start a beat anew with a clock that is off, or that is right again."""
    if faketime() is None:
        return ""
    service = testbed.beats[fault.target]
    service.skew = random.choice(SKEWS)
    return _kill(service, fault, group=True) and f"{service.name} by {service.skew} s"


# --- Networks ------------------------------------------------------------------------------------


def _cut(service: SupervisedProcess, fault: Fault, random: Random, *servers: str) -> str:
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


def beat_without_postgres(testbed: Testbed, fault: Fault, random: Random) -> str:
    return _cut(testbed.beats[fault.target], fault, random, "postgres")


def beat_without_redis(testbed: Testbed, fault: Fault, random: Random) -> str:
    return _cut(testbed.beats[fault.target], fault, random, "redis")


def beat_without_both(testbed: Testbed, fault: Fault, random: Random) -> str:
    return _cut(testbed.beats[fault.target], fault, random, "postgres", "redis")


def worker_without_postgres(testbed: Testbed, fault: Fault, random: Random) -> str:
    return _cut(testbed.workers[fault.target], fault, random, "postgres")


def worker_without_redis(testbed: Testbed, fault: Fault, random: Random) -> str:
    return _cut(testbed.workers[fault.target], fault, random, "redis")


def worker_without_both(testbed: Testbed, fault: Fault, random: Random) -> str:
    return _cut(testbed.workers[fault.target], fault, random, "postgres", "redis")


def _forget(service: SupervisedProcess, random: Random) -> str:
    """Let a service's connections be dead for good, as where a router has forgotten them."""
    server = random.choice(["postgres", "redis"])
    service.ways[server].swallow()
    return f"{service.name}, {server}"


def beat_forgotten(testbed: Testbed, fault: Fault, random: Random) -> str:
    return _forget(testbed.beats[fault.target], random)


def worker_forgotten(testbed: Testbed, fault: Fault, random: Random) -> str:
    return _forget(testbed.workers[fault.target], random)


# --- Servers -------------------------------------------------------------------------------------


def restart_redis(testbed: Testbed, fault: Fault, random: Random) -> str:
    """Kill it; it comes back empty."""
    with testbed.servers["redis"]:
        testbed.redis_server.kill()
        time.sleep(fault.lasts)
        testbed.redis_server.start()
    return "killed"


def freeze_redis(testbed: Testbed, fault: Fault, random: Random) -> str:
    with testbed.servers["redis"]:
        _freeze(lambda number: os.kill(testbed.redis_server.pid, number), fault.lasts)
    return "frozen"


def flush_redis(testbed: Testbed, fault: Fault, random: Random) -> str:
    testbed.redis.flushall()
    return "flushed"


def restart_postgres(testbed: Testbed, fault: Fault, random: Random) -> str:
    with testbed.servers["postgres"]:
        testbed.postgres.stop()
        time.sleep(fault.lasts)
        testbed.postgres.start()
    return "stopped"


def crash_postgres(testbed: Testbed, fault: Fault, random: Random) -> str:
    """Shut it down at once, as a crash would: it recovers from its log when it starts."""
    with testbed.servers["postgres"]:
        os.kill(testbed.postgres.pid, signal.SIGQUIT)
        testbed.postgres.stop()
        time.sleep(fault.lasts)
        testbed.postgres.start()
    return "crashed"


TERMINATE = """
SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
 WHERE backend_type = 'client backend' AND pid <> pg_backend_pid() AND random() < %s
"""


def terminate_backends(testbed: Testbed, fault: Fault, random: Random) -> str:
    with testbed.connect() as connection:
        row = connection.execute(TERMINATE, [random.choice([0.2, 0.6, 1.0])]).fetchone()
    return f"{row[0]} connections" if row else ""


def step_clock(testbed: Testbed, fault: Fault, random: Random) -> str:
    """Step the ledger's clock by up to a minute, forward or back, never further off than that."""
    size = random.choice([0.5, 5.0, MOST_OFF]) * random.uniform(0.3, 1.0) * random.choice([-1, 1])
    ahead = sum(step.size for step in testbed.steps)
    if abs(ahead + size) > MOST_OFF:
        size = -size
    return f"{size:+.3f} s" if testbed.step_clock(round(size, 3)) else ""


# --- Messages ------------------------------------------------------------------------------------


def _messages(testbed: Testbed, random: Random) -> tuple[str, list[bytes]]:
    """Return a lane that has messages, and some of them."""
    lanes = [lane for lane in LANES if testbed.redis.llen(lane)]
    if not lanes:
        return "", []
    lane = random.choice(lanes)
    there: list[bytes] = testbed.redis.lrange(lane, 0, -1)  # type: ignore[assignment]
    return lane, random.sample(there, min(len(there), random.randint(1, 20)))


def lock_rows(testbed: Testbed, fault: Fault, random: Random) -> str:
    """Hold rows of runs that are at work in a transaction of another client's."""
    with testbed.connect() as connection, connection.transaction():
        connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        locked = connection.execute(LOCK, [random.randint(1, 20)]).rowcount
        if locked:
            time.sleep(fault.lasts)
    return f"{locked} runs" if locked else ""


def double_hints(testbed: Testbed, fault: Fault, random: Random) -> str:
    """Put copies of hints into their lists; of earlier hints, if a list is empty."""
    lane, found = _wait_for_messages(testbed, random)
    for _ in range(random.randint(1, 3)):
        if found:
            testbed.redis.lpush(lane, *found)
    return f"{len(found)} hints" if found else ""


def drop_hints(testbed: Testbed, fault: Fault, random: Random) -> str:
    """Take hints out of their lists, and forget which ones workers have taken."""
    lane, found = _wait_for_messages(testbed, random)
    before = testbed.redis.llen(lane) if lane else 0
    for message in found:
        testbed.redis.lrem(lane, 1, message)  # type: ignore[arg-type]
    testbed.redis.delete("unacked", "unacked_index")
    return f"up to {len(found)} of {before} hints" if found else ""


def _wait_for_messages(testbed: Testbed, random: Random) -> tuple[str, list[bytes]]:
    """Look until there are some: on a quiet system they stay for a millisecond."""
    until = time.monotonic() + 1.0
    while True:
        lane, found = _messages(testbed, random)
        if found or time.monotonic() > until:
            return lane, found


# Plain messages of it would run where workers accept them: they must leave no evidence.
NO_TASK = ("chaos.tasks.unknown",)


def garbage_hints(testbed: Testbed, fault: Fault, random: Random) -> str:
    """Push messages of all odd shapes, and hints that name another attempt or an unknown run."""
    garbage = Garbage(random, NO_TASK)
    payloads = [garbage.message() for _ in range(random.randint(50, 300))]
    lane, found = _wait_for_messages(testbed, random)
    for message in found:
        payloads.append(message.replace(b'"run_attempt": 1', b'"run_attempt": 2'))
        payloads.append(message.replace(b'"run_attempt": 1', b'"run_attempt": -7'))
        payloads.append(message[: len(message) // 2])
    pipeline = testbed.redis.pipeline(transaction=False)
    pipeline.lpush(lane or LANES[2], *payloads)
    for number in range(10):
        channel, said = garbage.broadcast()
        pipeline.publish(f"/0.{channel}", said)
        pipeline.hset("unacked", f"garbage {number}", garbage.note())
        pipeline.zadd("unacked_index", {f"garbage {number}": 1})
    pipeline.execute()
    return f"{len(payloads)} messages"


ACTS: dict[str, Callable[[Testbed, Fault, Random], str]] = {kind: globals()[kind] for kind in KINDS}
