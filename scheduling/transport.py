"""kombu's Redis transport, which one unreadable message does not bring down."""

import logging
from queue import Empty
from typing import Any

from kombu.transport import redis

from scheduling.logs import event

logger = logging.getLogger(__name__)


class Channel(redis.Channel):
    """Drops what is no message: kombu's own lets the error end the worker.

    Anybody who can write to Redis could stop every worker with one word otherwise. What it said is
    not needed: a hint that was mangled is sent again.
    """

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[misc]
        except (ValueError, KeyError, TypeError, AttributeError):
            event(logger, "message_unreadable", level=logging.ERROR)
            logger.debug("message_unreadable", exc_info=True)
            raise Empty from None


class Transport(redis.Transport):
    """Named in CELERY_BROKER_TRANSPORT."""

    Channel = Channel
