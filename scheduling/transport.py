"""kombu's Redis transport, with a valve, which one unreadable message does not bring down."""

import logging
from queue import Empty
from typing import Any

from kombu.transport import redis

from scheduling import intake
from scheduling.logs import event

logger = logging.getLogger(__name__)


class Poller(redis.MultiChannelPoller):
    """Leaves a sign that the worker's loop goes round."""

    def on_poll_start(self) -> None:
        intake.note_look()
        super().on_poll_start()


class Channel(redis.Channel):
    """Asks for no message while the intake is closed, and drops what is none.

    kombu's own lets the error of an unreadable one end the worker: anybody who can write to Redis
    could stop every worker with one word. What it said is not needed: a hint that was mangled is
    sent again.
    """

    def _brpop_start(self, timeout: float | None = None) -> None:
        if not intake.closed():
            super()._brpop_start(timeout)  # type: ignore[misc]

    def _brpop_read(self, **options: Any) -> Any:
        try:
            found = super()._brpop_read(**options)  # type: ignore[misc]
        except (ValueError, KeyError, TypeError, AttributeError):
            event(logger, "message_unreadable", level=logging.ERROR)
            logger.debug("message_unreadable", exc_info=True)
            raise Empty from None
        intake.note_taken()
        return found


class Transport(redis.Transport):
    """Named in CELERY_BROKER_TRANSPORT."""

    Channel = Channel

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cycle = Poller()
