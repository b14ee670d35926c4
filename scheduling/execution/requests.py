"""Completes the request of a hint with the arguments and options that its row holds."""

from collections.abc import Iterable
from typing import Any

from celery.utils.saferepr import saferepr

from scheduling.registry import check_arguments, decode_call
from scheduling.runs.errbacks import errback_arguments
from scheduling.runs.message_options import DELAYED, read_options, request_fields
from scheduling.runs.running import Claimed, Execution

PLAIN = {str, int, float, bool, type(None)}


def call_of(
    execution: Execution, claimed: Claimed
) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    """Return the arguments and the options that the row holds."""
    args, kwargs = decode_call(claimed.args, claimed.kwargs)
    options = read_options(claimed.options)
    if failure := options.get("failure"):
        args = errback_arguments(execution.job, failure, args, kwargs)
        execution.arguments = args, kwargs
    check_arguments(execution.job, args, kwargs)
    return args, kwargs, options


def fill_request(
    request: dict[str, Any],
    attempt: int,
    claimed: Claimed,
    args: list[Any],
    kwargs: dict[str, Any],
    options: dict[str, Any],
) -> None:
    """Complete the request of a hint, which has no arguments, for the real call."""
    headers = options.pop("headers", None)
    headers = headers if isinstance(headers, dict) else {}
    request.update({name: value for name, value in headers.items() if name not in request})
    request.update(request_fields(options))
    if DELAYED in options:
        request[DELAYED] = claimed.due_at.isoformat()
    request["delivery_info"] = {
        **(request.get("delivery_info") or {}),
        "priority": options.get("priority", claimed.priority),
        # An earlier attempt was handed back, or was rejected to be tried again.
        "redelivered": attempt > claimed.failures + 1,
    }
    request.update(
        args=args,
        kwargs=kwargs,
        argsrepr=_shown(args, args),
        kwargsrepr=_shown(kwargs, kwargs.values()),
        retries=claimed.failures,
        headers=headers,
        ignore_result=options.get("ignore_result"),
        shadow=options.get("shadow"),
    )
    if claimed.schedule_name:
        request["periodic_task_name"] = claimed.schedule_name


def _shown(call: list[Any] | dict[str, Any], values: Iterable[Any]) -> str:
    """Return `saferepr` of arguments; for plain values `repr`, which takes a tenth of the time."""
    return repr(call) if all(type(value) in PLAIN for value in values) else saferepr(call)
