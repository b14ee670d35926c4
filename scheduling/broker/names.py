"""The names of keys in Redis: lists of hints, the bell, and the broker's own keys.

kombu's channel forms its names from transport options (`global_keyprefix`, `sep`, ...). The engine
asks that channel's own code, so that a hint always lies where a worker looks for it.
"""

from typing import Any

from celery import current_app

from scheduling.broker.transport import Channel

OWN = "scheduling."  # the prefix of the engine's own keys and channels


class Names(Channel):
    """kombu's channel without a connection, which only forms names."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        for name in self.from_transport_options:
            if name in options:
                setattr(self, name, options[name])

    def list_of(self, queue: str, priority: int) -> str:
        """Return the key of the list that holds a queue's messages of one priority."""
        key = self._q_for_pri(queue, priority)
        return f"{self.global_keyprefix}{key}"

    def why_taken(self, queue: str) -> str:
        """Return the broker's own use of a queue's name, or "" if the name is free.

        A list under such a key would break that use: with a queue named "unacked", workers could
        take no plain message any more.
        """
        conf = current_app.conf
        control, events = f"{conf.control_exchange}.pidbox", str(conf.event_queue_prefix)
        if queue in (self.unacked_key, self.unacked_index_key, self.unacked_mutex_key):
            return "the messages that workers have taken"
        if queue.startswith("_kombu."):
            return "kombu's bindings"
        if self.sep in queue:
            return "the priorities of a queue"
        if queue == control or queue.endswith(f".{control}"):
            return "remote control"
        if queue == events or queue.startswith(f"{events}."):
            return "events"
        if queue.startswith(OWN):
            return "the scheduler itself"
        return ""

    def key_of(self, name: str) -> str:
        """Return the key of that name."""
        return f"{self.global_keyprefix}{name}"

    def channel_of(self, name: str) -> str:
        """Return the pub/sub channel of that name."""
        return f"{self.global_keyprefix}{name}"


_names = Names({})


def names() -> Names:
    """Return the names under the transport options that are set now."""
    global _names
    options = dict(current_app.conf.broker_transport_options or {})
    if options != _names.options:
        _names = Names(options)
    return _names
