"""Two installations in one database of Redis: beats notice it, workers pass on foreign hints.

Each beat signs its ledger into a list in Redis. A worker that takes a hint of another ledger puts
the hint back at the far end of its list if a beat of that ledger has signed in of late. Otherwise
it drops the hint: that beat sends its hints again when it is back.
"""

import logging
from functools import cache
from typing import Any

import redis
from kombu.utils.json import dumps

from scheduling.broker import clients, refusals

logger = logging.getLogger(__name__)

LEDGERS = "scheduling.ledgers"  # a sorted set of ledgers' ids, by when they last signed in
PRESENT = 60.0  # seconds for which a ledger counts as present after it has signed in
NAMED_MAX = 10  # ledgers that are read: anybody who can write to Redis can make them up


def sign_in(client: "redis.Redis", key: str, ledger: str) -> list[str]:
    """Note in Redis that this ledger is present; return the ids of the others that are.

    Args:
        key: the key of LEDGERS, with its prefix.
    """
    seconds, _ = client.time()
    pipeline = client.pipeline(transaction=False)
    pipeline.zadd(key, {ledger: seconds})
    pipeline.zremrangebyscore(key, "-inf", seconds - PRESENT)
    pipeline.zrange(key, 0, NAMED_MAX)
    *_, found = pipeline.execute()
    names = [there.decode("utf-8", "replace") for there in found]
    return [name for name in names if name != ledger]


def pass_on(channel: Any, raw: dict[str, Any], queue: str, ledger: str) -> None:
    """Put another ledger's hint back for its own workers if that ledger is present, else drop it.

    Args:
        channel: kombu's, which names the keys in Redis.
    """
    put_back = False
    try:
        put_back = _put_back(channel, raw, queue, ledger)
    except redis.RedisError as error:  # its beat sends it again
        logger.debug("foreign_hint", exc_info=error)
    refusals.log("foreign_hint", ledger=ledger[:36], queue=queue, put_back=put_back)


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
