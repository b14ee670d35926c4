"""Two installations in one Redis database: beats notice it, and workers live with it.

Each beat signs its ledger into a list in Redis. A worker that takes a hint of another ledger puts
it back at the far end of its list if that ledger's beat has signed in of late, and drops it if not:
that beat sends its hints again when it is back.
"""

import logging
import threading
import time
from functools import cache
from typing import Any

import redis
from kombu.utils.json import dumps

from scheduling.broker import clients, intake
from scheduling.logs import event

logger = logging.getLogger(__name__)

LEDGERS = "scheduling.ledgers"  # a sorted set of ledgers' ids, by when they last signed in
PRESENT = 60.0  # seconds for which a ledger that has signed in counts as there
NAMED_MAX = 10  # ledgers: anybody who can write to Redis can make them up
FOREIGN_MAX = 10  # foreign hints one after the other, after which a worker pauses
PAUSE = 0.5  # seconds
TOLD_EVERY = 60.0  # seconds between two lines about foreign hints


def sign_in(client: "redis.Redis", key: str, ledger: str) -> list[str]:
    """Note in Redis that a beat of this ledger is there; return the ids of the others that are.

    Args:
        key: of LEDGERS.
    """
    seconds, _ = client.time()
    pipeline = client.pipeline(transaction=False)
    pipeline.zadd(key, {ledger: seconds})
    pipeline.zremrangebyscore(key, "-inf", seconds - PRESENT)
    pipeline.zrange(key, 0, NAMED_MAX)
    *_, found = pipeline.execute()
    names = [there.decode("utf-8", "replace") for there in found]
    return [name for name in names if name != ledger]


class _Foreign:
    """What this worker does with hints of other ledgers. In the loop of its parent alone."""

    def __init__(self) -> None:
        self._running = 0  # foreign hints since the last message of its own
        self._told_at = -TOLD_EVERY

    def own(self) -> None:
        self._running = 0

    def hand_on(self, channel: Any, raw: dict[str, Any], queue: str, ledger: str) -> None:
        """Put a hint back where its own workers will find it, if its ledger is there.

        Args:
            channel: kombu's, which names what lies in Redis.
        """
        there = False
        try:
            there = _put_back(channel, raw, queue, ledger)
        except redis.RedisError as error:  # its beat sends it again
            logger.debug("foreign_hint", exc_info=error)
        if time.monotonic() - self._told_at >= TOLD_EVERY:
            self._told_at = time.monotonic()
            event(logger, "foreign_hint", level=logging.WARNING, ledger=ledger[:36], queue=queue,
                  put_back=there)  # fmt: skip
        self._running += 1
        if self._running >= FOREIGN_MAX:  # nothing else is there: its own workers are to come by
            self._running = 0
            intake.close("sharing", "the queue holds hints of another ledger")
            timer = threading.Timer(PAUSE, intake.reopen, ("sharing",))
            timer.daemon = True
            timer.start()


def _put_back(channel: Any, raw: dict[str, Any], queue: str, ledger: str) -> bool:
    properties = raw.get("properties")
    priority = properties.get("priority") if isinstance(properties, dict) else None
    if type(priority) is not int or not 0 <= priority <= 9:
        return False
    client, prefix = _client(), channel.global_keyprefix
    pipeline = client.pipeline(transaction=False)
    pipeline.time()
    pipeline.zscore(f"{prefix}{LEDGERS}", ledger)
    (seconds, _), signed_in = pipeline.execute()
    if signed_in is None or seconds - signed_in > PRESENT:
        return False
    client.lpush(f"{prefix}{channel._q_for_pri(queue, priority)}", dumps(raw))
    return True


@cache
def _client() -> "redis.Redis":
    return clients.client(socket_timeout=1)


foreign = _Foreign()
