"""The options of a call: its queue, its priority, and when it expires.

They are the options that Celery would give the same call of `.delay()`: the task's own (of its
decorator, its class, `task_annotations`, the `task_default_*` settings), the options of the call or
its schedule, and those of `task_routes`. Every way in which a run is made asks here.

Options that a worker reads from its own task need no place in a run: time limits, `ignore_result`,
serializers. A run keeps them only if the call itself gives them.

An exchange and a routing key are looked up in the queues that the settings declare, by the code of
kombu's own exchanges. A run is done once and lies in one queue: a route that would deliver copies
to several queues, or to every worker, is refused unless it names one of these queues.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

from celery import current_app
from celery.app.routes import MapRoute, Router
from celery.exceptions import QueueNotFound
from celery.utils.functional import maybe_evaluate
from django.db import DatabaseError
from kombu.transport.virtual.exchange import STANDARD_EXCHANGE_TYPES

from scheduling.base_job import known_task
from scheduling.broker.names import names
from scheduling.celery_internals import exec_options
from scheduling.errors import EnqueueError
from scheduling.postgres.sql import clean
from scheduling.words import Priority

DESTINATION = ("queue", "exchange", "routing_key", "exchange_type", "priority")
# Options that `Celery.send_task` takes for itself: no router sees them.
NOT_ROUTED = {
    "task_id", "producer", "connection", "router", "result_cls", "expires", "publisher", "link",
    "link_error", "add_to_parent", "group_id", "group_index", "retries", "chord", "reply_to",
    "time_limit", "soft_time_limit", "root_id", "parent_id", "route_name", "shadow", "chain",
    "task_type", "replaced_task_nesting", "ignore_result",
}  # fmt: skip
QUEUE_MAX = 200  # characters


class CeleryCall(NamedTuple):
    """A call of a task with the parameters of `Celery.send_task`."""

    name: str
    args: Any
    kwargs: Any
    countdown: float | None  # seconds
    eta: datetime | str | None
    options: Mapping[str, Any]


class CallOptions(NamedTuple):
    """Where a call goes, and when it expires: an instant, the time until then, or never."""

    queue: str
    priority: Priority
    expires: datetime | timedelta | None


def options_of(
    name: str,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    asked: Mapping[str, Any] | None = None,
) -> CallOptions:
    """Return the options of a call of task `name`, which this process need not know.

    Args:
        asked: the call's own options, in Celery's words; they go before the task's.

    Raises:
        EnqueueError: the call is routed to no queue, to several, or to a forbidden name;
            or its router fails.
    """
    asked = asked or {}
    if isinstance(asked.get("queue"), str):
        check_queue(asked["queue"])  # before Celery takes note of a new queue
    task: Any = asked.get("task_type") or known_task(name)
    own = exec_options(task) if task is not None else {}
    options = {**own, **asked}
    router = options.get("router") or current_app.amqp.router
    called = options.get("route_name") or name
    routed = {option: value for option, value in options.items() if option not in NOT_ROUTED}
    if asks_each_call(router):
        queue, priority = _asked_of(router, called, tuple(args), dict(kwargs or {}), routed, task)
    else:
        wanted = tuple((option, routed[option]) for option in DESTINATION if option in routed)
        try:
            queue, priority = _looked_up(router, called, wanted)
        except TypeError:
            raise EnqueueError(
                f"task {name}: queue, exchange and routing key must be names: {dict(wanted)!r}."
            ) from None
    return CallOptions(queue, priority, instant_or_length(options.get("expires")))


def asked_by(schedule: Any) -> dict[str, Any]:
    """Return where the columns of a schedule's row send its calls: an empty one says nothing."""
    columns = ("queue", "exchange", "routing_key", "priority")
    asked = {column: getattr(schedule, column) for column in columns}
    return {column: value for column, value in asked.items() if value not in (None, "")}


def own_expiry(name: str) -> datetime | timedelta | None:
    """Return when a call of task `name` expires if nothing else is asked for.

    Raises:
        EnqueueError: the task's `expires` is neither an instant nor a length of time.
    """
    found: datetime | timedelta | None
    found = instant_or_length(getattr(known_task(name), "expires", None))
    return found


def routed_by_arguments() -> bool:
    """Return whether the queue of a call may depend on its arguments."""
    return asks_each_call(current_app.amqp.router)


@lru_cache(maxsize=16)
def asks_each_call(router: Any) -> bool:
    """Return whether a router is a function: then it is asked for each call.

    Dicts and patterns say the same of all calls of a task.
    """
    routes = (maybe_evaluate(route) for route in getattr(router, "routes", ()))
    return type(router) is not Router or any(type(route) is not MapRoute for route in routes)


@lru_cache(maxsize=4096)
def _looked_up(router: Any, name: str, wanted: tuple[tuple[str, Any], ...]) -> tuple[str, Priority]:
    return _asked_of(router, name, (), {}, dict(wanted), known_task(name))


def _asked_of(
    router: Any,
    name: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    options: dict[str, Any],
    task: Any,
) -> tuple[str, Priority]:
    try:
        route = router.route(dict(options), name, args, kwargs, task)
    except QueueNotFound as error:
        raise EnqueueError(f"unknown queue {_name(options.get('queue'))!r}: {error}") from None
    except (DatabaseError, EnqueueError):
        raise
    except Exception as error:  # a function of the project's
        raise EnqueueError(
            f"the router of task {name} failed: {type(error).__name__}: {error}"
        ) from error
    queue = _queue_of(name, route)
    if not isinstance(queue, str) or not 0 < len(queue) <= QUEUE_MAX or clean(queue) != queue:
        raise EnqueueError(
            f"queue must have 1 to {QUEUE_MAX} characters, no NUL and no lone surrogate:"
            f" {str(queue)[:60]!r}."
        )
    check_queue(queue)
    priority = route.get("priority")
    if priority is not None and not isinstance(priority, int):
        raise EnqueueError(f"task {name}: the priority must be a number, not {priority!r}.")
    return queue, Priority.nearest(priority)


def check_queue(queue: str) -> None:
    """Refuse a name that no queue can have.

    Raises:
        EnqueueError: it holds control characters, or the broker uses the name itself.
    """
    if not queue.isprintable():
        raise EnqueueError(f"queue {queue[:60]!r} has characters that cannot be printed.")
    if use := names().why_taken(queue):
        raise EnqueueError(
            f"queue {queue[:60]!r}: the broker uses this name itself, for {use}: take another one."
        )


def _queue_of(name: str, route: Mapping[str, Any]) -> Any:
    """Return the queue of a route, found as `celery.app.amqp` and kombu would deliver a message."""
    amqp: Any = current_app.amqp
    options = ("queue", "exchange", "routing_key")
    queue, exchange, key = (route.get(option) or None for option in options)
    if queue is None and exchange is None:
        queue = amqp.default_queue
    if isinstance(queue, str):
        queue = amqp.queues[queue]
    declared = getattr(queue, "exchange", None)
    kind = route.get("exchange_type") or getattr(declared, "type", None) or "direct"
    if kind == "direct" and not (exchange and key):
        if queue is None:
            raise EnqueueError(
                f"task {name} is routed to the exchange {_name(exchange)!r} without a routing key:"
                " give one, or name a queue."
            )
        return queue.name
    if exchange is None:
        exchange = getattr(declared, "name", None) or amqp.default_exchange
        default = current_app.conf.task_default_routing_key
        key = key or getattr(queue, "routing_key", None) or default
    return _bound(name, _name(exchange), str(key or ""), getattr(queue, "name", None))


def _bound(name: str, exchange: str, key: str, named: str | None) -> str:
    """Return the queue to which an exchange delivers; of several queues, the named one."""
    kind, bindings = "direct", []
    for queue in current_app.amqp.queues.values():
        for source, binding_key in _bindings(queue):
            if _name(source) == exchange:
                kind = source.type
                bindings.append((binding_key, queue.name))
    if kind == "fanout":
        raise EnqueueError(
            f"task {name} is routed to the exchange {exchange!r}, a fanout, which delivers to every"
            " worker; a run is done once: route it to a queue of a direct or a topic exchange."
        )
    found: set[Any] = set()
    if kind in STANDARD_EXCHANGE_TYPES:
        rules: Any = STANDARD_EXCHANGE_TYPES[kind](None)
        table = [rules.prepare_bind(queue, exchange, bound, {}) for bound, queue in bindings]
        found = rules.lookup(table, exchange, key, None)
    if len(found) == 1 or named in found:
        return str(named if named in found else min(found))
    route = f"task {name} is routed to the exchange {exchange!r} with the routing key {key!r}"
    if not found:
        raise EnqueueError(
            f"{route}, to which CELERY_TASK_QUEUES bind no queue: bind one, or name a queue alone."
        )
    raise EnqueueError(
        f"{route}, which delivers to {len(found)} queues ({', '.join(sorted(found))}); a run is"
        " done once: name one of them as the queue too."
    )


def _bindings(queue: Any) -> list[tuple[Any, str]]:
    """Return the exchanges to which a declared queue is bound, each with the binding's key."""
    pairs = [(each.exchange, each.routing_key or "") for each in queue.bindings]
    return [(queue.exchange, queue.routing_key or ""), *pairs] if queue.exchange else pairs


def _name(entity: Any) -> str:
    return str(getattr(entity, "name", entity))


def instant_or_length(value: object) -> Any:
    """Read a Celery eta or expires: ISO text, a datetime (naive: UTC), seconds, or None."""
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise EnqueueError(f"{value!r} is not an ISO 8601 time.") from None
    if isinstance(value, datetime) and value.tzinfo is None:
        return value.replace(tzinfo=UTC)
    if isinstance(value, int | float):
        try:
            return timedelta(seconds=max(value, 0))  # Celery reads a past time as now
        except (OverflowError, ValueError):
            raise EnqueueError(f"{value!r} is not a length of time.") from None
    return value
