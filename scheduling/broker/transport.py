"""kombu's Redis transport: it can stop polling, and takes hints without acknowledgements.

One unreadable message does not bring it down.
"""

import logging
import math
import time
from collections import Counter
from collections.abc import Iterable
from queue import Empty
from typing import Any

from kombu.transport import redis, virtual
from kombu.utils.encoding import bytes_to_str
from redis import Connection, ResponseError

from scheduling.broker import refusals, shape, sharing
from scheduling.broker.address import connection_options, without_password
from scheduling.broker.gate import ForeignHintError, Gate
from scheduling.broker.intake import Intake
from scheduling.broker.signing import ATTEMPT
from scheduling.logs import event

logger = logging.getLogger(__name__)


REFUSAL_PAUSE = 1.0  # seconds without a request after Redis has answered one by an error
LOG_EVERY = 10.0  # seconds between two lines about that
UNUSABLE_FOR = 10.0  # seconds for which a key that does not hold a list is left out
FOREIGN_MAX = 10  # foreign hints in a row from one list, after which that list is left out
FOREIGN_FOR = 0.5  # seconds for which it is
WRONG_TYPE = "WRONGTYPE"  # how Redis says so


class QoS(redis.QoS):
    """Notes in Redis which plain messages a worker has taken; hints need no note.

    kombu notes each message that it hands out, and deletes the note again: two round trips, half
    of the parent's work for a run. The note saves a message whose worker dies. A lost hint costs
    nothing: the ledger knows the run, and beat sends another hint.
    """

    channel: Any
    _delivered: Any

    def append(self, message: Any, delivery_tag: str) -> None:
        if ATTEMPT not in message.headers:
            try:
                super().append(message, delivery_tag)
            except ResponseError as error:
                # The message has left its list, and Redis refuses the note: keep the message here.
                event(logger, "message_not_noted", level=logging.WARNING, error=error)
                message.only_here = True
            else:
                return
        virtual.QoS.append(self, message, delivery_tag)

    def ack(self, delivery_tag: str) -> None:
        if not self._only_here(delivery_tag):
            try:
                super().ack(delivery_tag)
            except ResponseError as error:
                # Its place is free all the same. A note that remains can be deleted later.
                refusals.log("message_not_noted", why=str(error))
            else:
                return
        virtual.QoS.ack(self, delivery_tag)

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        message = self._only_here(delivery_tag)
        if message is None:
            super().reject(delivery_tag, requeue)
            return
        if requeue:
            self._put_back(message)
        virtual.QoS.ack(self, delivery_tag)

    def restore_unacked(self, client: Any = None) -> None:
        """Put back messages that this worker has taken and not begun, when a connection ends."""
        self._flush()  # type: ignore[attr-defined]
        for delivery_tag in list(self._delivered):
            if message := self._only_here(delivery_tag):
                self._put_back(message)
                del self._delivered[delivery_tag]
        super().restore_unacked(client)

    def restore_by_tag(self, tag: Any, client: Any = None, leftmost: bool = False) -> None:
        """Put a message back; delete an unreadable one, so that it does not block the others."""
        try:
            super().restore_by_tag(tag, client, leftmost)
        except self.channel.connection_errors:
            raise
        except Exception as error:
            refusals.log("message_unreadable", level=logging.ERROR, why=f"unacked: {error}")
            self._remove_from_indices(tag).execute()  # type: ignore[attr-defined]

    def _only_here(self, delivery_tag: str) -> Any:
        """Return the message of that tag if Redis has no note of it, as of a hint; else None."""
        message = self._delivered.get(delivery_tag)
        if message is not None and (ATTEMPT in message.headers or hasattr(message, "only_here")):
            return message
        return None

    def _put_back(self, message: Any) -> None:
        where, raw = message.delivery_info, message._raw
        if ATTEMPT in message.headers:  # workers of other programs must not run it as a task
            headers = {name: value for name, value in raw["headers"].items() if name != "task"}
            raw = {**raw, "headers": headers}
        with self.channel.conn_or_acquire() as client:
            self.channel._do_restore_message(raw, where["exchange"], where["routing_key"], client)


class Poller(redis.MultiChannelPoller):
    """kombu's poller, which notes that the loop goes round."""

    def __init__(self, intake: Intake) -> None:
        super().__init__()
        self._intake = intake

    def on_poll_init(self, poller: Any) -> None:
        """Begin (see kombu's). Messages of dead workers can be looked for later as well."""
        try:
            super().on_poll_init(poller)
        except ResponseError as error:
            logger.debug("redis_refuses", exc_info=error)

    def on_poll_start(self) -> None:
        self._intake.note_look()
        super().on_poll_start()


class Channel(redis.Channel):
    """Stops polling while the intake is closed. Drops unreadable messages.

    In kombu's channel any error of a message ends the worker, so anybody who can write to Redis
    could stop every worker with one word. A dropped message is not needed: beat sends a mangled
    hint again.
    """

    QoS = QoS
    # Each costs the worker's loop a round trip, and anybody can have written notes there.
    unacked_restore_limit = 100
    connection: Any
    connection_errors: Any
    client: Any
    active_queues: Any
    priority_steps: Any
    sep: str
    _q_for_pri: Any
    _in_listen: Any
    _queue_cycle: Any
    _logged_at = -math.inf

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._left_out: dict[str, float] = {}  # keys that are not asked for, until when
        self._foreign = Counter[str]()  # foreign hints in a row, by key

    def _connparams(self, asynchronous: bool = False) -> dict[str, Any]:
        """Return kombu's options of a connection, and those of the URL."""
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

    def _queue_bind(self, exchange: str, routing_key: str, pattern: str, queue: str) -> None:
        """Note a binding in Redis (see kombu's).

        A worker that starts while Redis refuses writes does not need a new binding: the queue of
        its tasks was bound before, and broadcasts and their answers do without bindings.
        """
        try:
            super()._queue_bind(exchange, routing_key, pattern, queue)  # type: ignore[misc]
        except ResponseError as error:
            bound = tuple(part or "" for part in (routing_key, pattern, queue))
            if not (self._does_without_binding(exchange) or bound in self.get_table(exchange)):
                self.state.binding_delete(queue, exchange, routing_key)
                raise
            event(logger, "binding_not_noted", level=logging.WARNING, queue=queue, error=error)

    def _delete(self, queue: str, *args: Any, **options: Any) -> None:
        """Delete a queue (see kombu's), unless Redis refuses that just now."""
        try:
            super()._delete(queue, *args, **options)
        except ResponseError as error:
            logger.debug("redis_refuses", exc_info=error)

    def _does_without_binding(self, exchange: str) -> bool:
        return exchange.endswith(".pidbox") or self.typeof(exchange).type == "fanout"

    def _size(self, queue: str) -> int:
        """Return how many messages a queue has (see kombu's); 0 if its key does not hold a list."""
        try:
            return int(super()._size(queue))
        except ResponseError as error:
            if WRONG_TYPE not in str(error):
                raise
            return 0

    def basic_consume(
        self, queue: str, no_ack: bool, callback: Any, consumer_tag: Any, **options: Any
    ) -> Any:
        """Consume from a queue (see kombu's); a message whose callback fails is dropped.

        kombu counts a message as taken before it calls back, so an error would keep its place.
        """

        def guarded(message: Any) -> Any:
            try:
                return callback(message)
            except self.connection_errors:
                raise
            except Exception as error:
                refusals.log("message_refused", level=logging.ERROR, why=repr(error))
                logger.debug("message_refused", exc_info=True)
                if not no_ack and not message.acknowledged:
                    message.reject()

        return super().basic_consume(queue, no_ack, guarded, consumer_tag, **options)

    def _brpop_start(self, timeout: float | None = None) -> None:
        intake: Intake = self.connection.intake
        if intake.closed() or time.monotonic() - intake.refused_at <= REFUSAL_PAUSE:
            return
        queues = self._queue_cycle.consume(len(self.active_queues))
        keys = [self._q_for_pri(queue, step) for step in self.priority_steps for queue in queues]
        keys = self._without_left_out(keys) if self._left_out else keys
        if not keys:
            return
        command = ["BRPOP", *keys, timeout or self.brpop_timeout or 0]
        if self.global_keyprefix:
            command = self.client._prefix_args(command)
        self._in_poll = self.client.connection
        self._brpop_sent_at = time.monotonic()
        self.client.connection.send_command(*command)

    def _without_left_out(self, keys: Iterable[str]) -> list[str]:
        now = time.monotonic()
        self._left_out = {key: until for key, until in self._left_out.items() if until > now}
        return [key for key in keys if key not in self._left_out]

    def _leave_out(self, keys: Iterable[str], seconds: float) -> None:
        self._left_out |= dict.fromkeys(keys, time.monotonic() + seconds)

    def _brpop_read(self, **options: Any) -> Any:
        try:
            key, item = self._popped(**options)
            queue = key.rsplit(self.sep, 1)[0]
            self._queue_cycle.rotate(queue)
            self.connection.intake.note_taken()
            message = shape.read(item)
            try:
                self.connection._deliver(message, queue)
            except ForeignHintError as error:
                self._pass_on(message, key, queue, error.ledger)
            else:
                self._foreign.pop(key, None)
        except (Empty, *self.connection_errors):
            raise
        except Exception as error:
            self._unreadable(error)
            raise Empty from None
        finally:
            self._in_poll = None
            self._flush_brpop_reauth()  # type: ignore[attr-defined]
        return True

    def _pass_on(self, message: dict[str, Any], key: str, queue: str, ledger: str) -> None:
        """Put a foreign hint back; leave its list to its own workers after many in a row."""
        sharing.pass_on(self, message, queue, ledger)
        self._foreign[key] += 1
        if self._foreign[key] >= FOREIGN_MAX:
            del self._foreign[key]
            self._leave_out([key], FOREIGN_FOR)

    def _popped(self, **options: Any) -> tuple[str, bytes]:
        """Return the key of a list and the message that Redis gives from it."""
        try:
            found = self.client.parse_response(self.client.connection, "BRPOP", **options)
        except ResponseError as error:
            if WRONG_TYPE in str(error):
                self._leave_unusable(error)
            else:
                self._note_refusal(error)
            raise Empty from None
        except self.connection_errors:
            self.client.connection.disconnect()
            raise
        if not found:
            raise Empty
        key, item = found
        return bytes_to_str(key), item

    def _note_refusal(self, error: ResponseError) -> None:
        intake: Intake = self.connection.intake
        intake.note_refusal()
        if intake.refused_at - self._logged_at > LOG_EVERY:
            self._logged_at = intake.refused_at
            event(logger, "redis_refuses", level=logging.WARNING, error=error)

    def _leave_unusable(self, error: ResponseError) -> None:
        """Leave out, for a while, keys that do not hold a list: they would block all others."""
        refusals.log("lane_unusable", level=logging.ERROR, why=str(error))
        keys = [
            self._q_for_pri(queue, step)
            for step in self.priority_steps
            for queue in self.active_queues
        ]
        with self.conn_or_acquire() as client:
            kinds = [self._length_of(client, key) for key in keys]
        wrong = [key for key, length in zip(keys, kinds, strict=True) if length is None]
        self._leave_out(wrong, UNUSABLE_FOR)

    def _length_of(self, client: Any, key: str) -> int | None:
        try:
            return int(client.llen(key))
        except ResponseError:
            return None

    def _receive_one(self, client: Any) -> Any:
        """Read one message of remote control or of other workers' events; drop other data."""
        try:
            response = client.parse_response()
            if not isinstance(response, list | tuple):
                return None
            payload = self._handle_message(client, response)  # type: ignore[attr-defined]
            if not bytes_to_str(payload["type"]).endswith("message") or not payload["data"]:
                return None
            channel = bytes_to_str(payload["channel"])
            channel = channel.partition(".")[2] if channel.startswith("/") else channel
            message, exchange = shape.read(payload["data"]), channel.split("/", 1)[0]
            return self._deliver_fanout_message(message, exchange)  # type: ignore[attr-defined]
        except self.connection_errors:
            self._in_listen = None
            raise
        except Exception as error:
            self._unreadable(error)
            raise Empty from None

    def _unreadable(self, error: Exception) -> None:
        refusals.log("message_unreadable", level=logging.ERROR, why=str(error))
        logger.debug("message_unreadable", exc_info=error)

    def _do_restore_message(
        self, payload: Any, exchange: Any, routing_key: Any, *args: Any, **kwargs: Any
    ) -> None:
        """Put a message back (see kombu's).

        Raises:
            UnfitError: it is not a message, or its origin is not two names.
        """
        shape.with_parts(payload)
        if not (isinstance(exchange, str) and isinstance(routing_key, str)):
            raise shape.UnfitError("its exchange or routing key is not a name")
        super()._do_restore_message(payload, exchange, routing_key, *args, **kwargs)  # type: ignore[misc]


class Transport(redis.Transport):
    """Named in CELERY_BROKER_TRANSPORT."""

    Channel = Channel
    # An error that Redis answers (READONLY, OOM, MISCONF, BUSY, ...) may pass. A worker waits and
    # connects again, as after a lost connection; with kombu's transport it would end.
    connection_errors = (*redis.Transport.connection_errors, ResponseError)
    # kombu then keeps the whole URL as the host name, for the channel to read. kombu's own parser
    # would lose the scheme rediss:// and the path of a socket.
    can_parse_url = True

    def __init__(self, client: Any, **kwargs: Any) -> None:
        super().__init__(client, **kwargs)
        process = getattr(getattr(client, "app", None), "worker_process", None)
        self.gate: Gate | None = process and process.gate
        self.intake: Intake = process.intake if process else Intake()
        self.cycle = Poller(self.intake)
        # kombu shows host names, as in `celery inspect stats`: they must not hold a password.
        if "://" in (client.hostname or ""):
            client.hostname, username, password = without_password(client.hostname)
            client.userid, client.password = username or client.userid, password or client.password

    def _deliver(self, message: Any, queue: Any) -> None:
        """Hand a message on; a worker's gate judges messages of its queues of tasks.

        Raises:
            ForeignHintError: the message is another ledger's hint.
        """
        if self.gate is not None and self.gate.judges(queue):
            judged = self.gate.judge(message, queue)
            if judged is message:
                judged = self._of_good_shape(message, queue, self.gate)
            if judged is None:
                return
            message = judged
        super()._deliver(message, queue)

    def _of_good_shape(self, message: Any, queue: str, gate: Gate) -> Any:
        """Return a plain message if Celery can take it without harm, or None."""
        try:
            return shape.plain(message, queue, gate.accepted())
        except shape.UnfitError as error:
            task = message["headers"].get("task")
            refusals.log("message_refused", task=str(task)[: refusals.SHOWN], why=str(error))
            return None
