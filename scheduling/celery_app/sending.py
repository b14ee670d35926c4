"""Turns Celery's calls (`delay`, `apply_async`, `send_task`) into runs.

The row is written on the caller's own connection, and so in the caller's own transaction. Celery's
signals are sent as for a message, so that receivers which add headers to messages add them to runs.
"""

import logging
import warnings
from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import UUID

import django
from celery import signals
from celery.exceptions import AlwaysEagerIgnored
from celery.utils.functional import maybe_list
from celery.utils.saferepr import saferepr
from django.apps import apps
from django.db import transaction

from scheduling.broker.untracked import all_untracked, is_untracked
from scheduling.ids import uuid7
from scheduling.logs import event

if TYPE_CHECKING:
    from celery import Celery

    from scheduling.task_options import CeleryCall

logger = logging.getLogger(__name__)

# Options of a call that `as_task_v2` knows by the same names.
AS_MESSAGE = ("group_id", "group_index", "expires", "retries", "chord", "time_limit",
              "soft_time_limit", "root_id", "parent_id", "shadow", "chain", "ignore_result",
              "stamped_headers", "replaced_task_nesting")  # fmt: skip
CARRIED = ("link", "link_error", "chain", "chord")


def set_up() -> None:
    """Load the models, which the commands `celery call` and `celery control` do not."""
    if not apps.models_ready:
        django.setup()


def stays_plain(name: str, options: Mapping[str, Any]) -> bool:
    """Return whether a call goes to the broker as a plain message, as Celery would send it.

    UNTRACKED_TASKS must also name every task that the message would set off: a worker starts no
    other task for a plain message.
    """
    return is_untracked(name) and all_untracked([options.get(what) for what in CARRIED])


def write_run(app: "Celery", call: "CeleryCall") -> UUID:
    """Write the run that stands for a call; return its id.

    Raises:
        EnqueueError: see `enqueue_message`.
    """
    from scheduling.runs.messages import enqueue_message

    if app.conf.task_always_eager:
        warnings.warn(
            AlwaysEagerIgnored("task_always_eager has no effect on send_task"), stacklevel=3
        )
    if signals.before_task_publish.receivers or signals.after_task_publish.receivers:
        run_id = _write_with_signals(app, call)
    else:
        run_id = enqueue_message(call)
    if app.conf.task_send_sent_event:
        transaction.on_commit(partial(_send_event, app, call, run_id))
    return run_id


def _write_with_signals(app: "Celery", call: "CeleryCall") -> UUID:
    """Write a run between Celery's two signals of a message that is published.

    A receiver may change the arguments, and add headers: the run has them.
    """
    from scheduling.runs.messages import enqueue_message
    from scheduling.task_options import options_of

    name, options = call.name, call.options
    run_id = str(options.get("task_id") or uuid7())
    as_task_v2: Any = app.amqp.as_task_v2
    message = as_task_v2(
        run_id, name, list(call.args or ()), dict(call.kwargs or {}), call.countdown, call.eta,
        callbacks=maybe_list(options.get("link")), errbacks=maybe_list(options.get("link_error")),
        **{known: options.get(known) for known in AS_MESSAGE},
        **{stamp: options.get(stamp) for stamp in options.get("stamped_headers") or ()},
    )  # fmt: skip
    own = set(message.headers)
    message.headers.update(options.get("headers") or {})
    queue = options_of(name, call.args or (), call.kwargs or {}, options).queue
    where = {"exchange": "", "routing_key": queue}
    signals.before_task_publish.send(
        sender=name, body=message.body, headers=message.headers, properties=message.properties,
        declare=[], retry_policy={}, **where,
    )  # fmt: skip
    args, kwargs, _ = message.body
    headers = {header: value for header, value in message.headers.items() if header not in own}
    written = {**options, "task_id": run_id, "headers": headers}
    enqueued = enqueue_message(call._replace(args=args, kwargs=kwargs, options=written))
    signals.after_task_publish.send(
        sender=name, body=message.body, headers=message.headers, **where
    )
    return enqueued


def _send_event(app: "Celery", call: "CeleryCall", run_id: UUID) -> None:
    """Send Celery's event `task-sent`, if `task_send_sent_event` asks for it; never raises."""
    from scheduling.task_options import options_of

    options = call.options
    queue = options_of(call.name, call.args or (), call.kwargs or {}, options).queue
    sent = {
        "uuid": str(run_id), "name": call.name, "args": saferepr(call.args or ()), "queue": queue,
        "kwargs": saferepr(call.kwargs or {}), "retries": options.get("retries") or 0,
        "root_id": options.get("root_id") or str(run_id), "parent_id": options.get("parent_id"),
        "eta": None, "expires": None, "exchange": "", "routing_key": queue,
    }  # fmt: skip
    try:
        with app.producer_or_acquire() as producer:
            app.events.Dispatcher(enabled=False).publish("task-sent", sent, producer, retry=False)
    except Exception as error:
        event(logger, "task_sent_not_published", level=logging.WARNING, run=run_id, error=error)
