"""kombu's Redis transport, with a valve, and with less ado about hints.

One unreadable message does not bring it down.
"""

import logging
from queue import Empty
from typing import Any

from kombu.transport import redis, virtual
from redis import Connection

from scheduling.broker import gate, intake
from scheduling.broker.address import connection_options, without_password
from scheduling.broker.gate import ATTEMPT as ATTEMPT
from scheduling.logs import event

logger = logging.getLogger(__name__)


class QoS(redis.QoS):
    """Keeps in Redis what plain messages a worker has taken, and of hints nothing.

    kombu writes down each message that it hands out, and strikes it out again: two round trips,
    half of what the worker's parent does for a run. They save a message whose worker dies. A hint
    that is lost costs nothing: the ledger knows the run, and beat sends another.
    """

    channel: Any
    _delivered: Any

    def append(self, message: Any, delivery_tag: str) -> None:
        keep = virtual.QoS if ATTEMPT in message.headers else redis.QoS
        keep.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        (virtual.QoS if self._hint(delivery_tag) else redis.QoS).ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        hint = self._hint(delivery_tag)
        if hint is None:
            super().reject(delivery_tag, requeue)
            return
        if requeue:
            self._put_back(hint)
        virtual.QoS.ack(self, delivery_tag)

    def restore_unacked(self, client: Any = None) -> None:
        """Put back what this worker has taken and not begun: at its end, or a connection's."""
        self._flush()  # type: ignore[attr-defined]
        for delivery_tag in list(self._delivered):
            if hint := self._hint(delivery_tag):
                self._put_back(hint)
                del self._delivered[delivery_tag]
        super().restore_unacked(client)

    def _hint(self, delivery_tag: str) -> Any:
        """Return the message of that tag if it is a hint; None if it is not, or not here."""
        message = self._delivered.get(delivery_tag)
        return message if message is not None and ATTEMPT in message.headers else None

    def _put_back(self, message: Any) -> None:
        where = message.delivery_info
        with self.channel.conn_or_acquire() as client:
            self.channel._do_restore_message(
                message._raw, where["exchange"], where["routing_key"], client
            )


class Poller(redis.MultiChannelPoller):
    """Leaves a sign that the worker's loop goes round, and does in each round what there is to do.

    kombu's looks at all connections anew in each. Most rounds are for a child's answer, and in them
    every channel still waits for Redis: that look was a seventh of the parent's time.
    """

    _channels: set[Any]
    _chan_to_sock: dict[Any, Any]
    _paused_brpop: dict[int, Any]

    def on_poll_start(self) -> None:
        intake.note_look()
        if self._paused_brpop or not all(map(self._waits, self._channels)):
            super().on_poll_start()

    def _waits(self, channel: Any) -> bool:
        """Whether a channel has asked Redis for all that it wants, or may not ask just now."""
        if channel.active_fanout_queues and not self._reads(channel._in_listen):
            return False
        asked = self._reads(channel._in_poll)
        return asked or not channel.qos.can_consume() or not channel.active_queues

    def _reads(self, connection: Any) -> bool:
        """Whether what comes on this connection, if it is one, would be noticed."""
        return bool(connection) and connection._sock in self._chan_to_sock.values()


class _Loop:
    """kombu's event loop, to which a file that it reads from already need not be added again."""

    def __init__(self, hub: Any) -> None:
        self._hub = hub

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hub, name)

    def add_reader(self, file: int, *callback: Any) -> None:
        if file not in self._hub.readers:
            self._hub.add_reader(file, *callback)


class Channel(redis.Channel):
    """Asks for no message while the intake is closed, and drops what is none.

    kombu's own lets the error of an unreadable one end the worker: anybody who can write to Redis
    could stop every worker with one word. What it said is not needed: a hint that was mangled is
    sent again.
    """

    QoS = QoS
    connection: Any

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        """Return kombu's options of a connection, with those that the URL says."""
        client = self.connection.client
        if "://" not in (client.hostname or ""):
            return dict(super()._connparams(asynchronous))  # type: ignore[misc]
        options = connection_options(client.hostname)
        self.connection_class = options.pop("connection_class", Connection)
        login = {"username": client.userid, "password": client.password}
        of_kombu: dict[str, Any] = super()._connparams(asynchronous)  # type: ignore[misc]
        if "path" in options:  # a Unix socket
            of_kombu = self._filter_tcp_connparams(**of_kombu)  # type: ignore[attr-defined]
        return {**of_kombu, **login, **options}

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
    # kombu keeps the whole URL as the host name, and leaves it to the channel: of what it would
    # read itself nothing would be left of rediss:// or of the path of a socket.
    can_parse_url = True

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        self.cycle = Poller()
        # kombu shows host names, in `celery inspect stats` for one, but no user or password.
        if "://" in (client.hostname or ""):
            client.hostname, username, password = without_password(client.hostname)
            client.userid, client.password = username or client.userid, password or client.password

    def _deliver(self, message: Any, queue: Any) -> None:
        """Hand a message on; a worker's gate judges what comes from its queues of tasks."""
        judged = gate.judge(message) if gate.judges(queue) else message
        if judged is not None:
            super()._deliver(judged, queue)

    def register_with_event_loop(self, connection: Any, loop: Any) -> None:
        """Have the loop read what Redis answers; kombu adds all connections in each round."""
        super().register_with_event_loop(connection, _Loop(loop))
