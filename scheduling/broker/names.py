"""The names of what lies in Redis: lists of hints, the bell, and what the broker keeps itself.

kombu's channel forms its names from transport options (`global_keyprefix`, `sep`, ...). The engine
asks that channel's own code, so that a hint always lies where a worker looks for it.
"""

from typing import Any

from celery import current_app

from scheduling.broker.transport import Channel


class Names(Channel):
    """kombu's channel without a connection: it only knows what things are called."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        for name in self.from_transport_options:
            if name in options:
                setattr(self, name, options[name])

    def list_of(self, queue: str, priority: int) -> str:
        """Return the key of the list that holds a queue's messages of one priority."""
        key = self._q_for_pri(queue, priority)  # type: ignore[attr-defined]
        return f"{self.global_keyprefix}{key}"

    def channel_of(self, name: str) -> str:
        """Return the pub/sub channel of that name."""
        return f"{self.global_keyprefix}{name}"


_names = Names({})


def names() -> Names:
    """Return the names under the transport options that are set now."""
    global _names
    options = dict(current_app.conf.broker_transport_options)
    if options != _names.options:
        _names = Names(options)
    return _names
