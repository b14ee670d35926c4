"""The options that a run keeps for its message, stored as JSON: headers, time limits, family."""

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from kombu.utils.json import dumps, loads

from scheduling.errors import EnqueueError
from scheduling.models import Priority

LONGEST = timedelta(days=36_500)
DELAYED = "eta"  # a countdown or an ETA was asked for: `due_at` is that instant
MESSAGE = ("headers", "time_limit", "soft_time_limit", "ignore_result", "shadow",
           "replaced_task_nesting", "stamped_headers", "failure", DELAYED)  # fmt: skip
FAMILY = ("root_id", "parent_id", "group_id", "group_index")


def read_options(text: str) -> dict[str, Any]:
    """Return a run's options from their JSON text.

    Raises:
        EnqueueError: they are not a JSON object.
    """
    if text == "{}":  # as most are
        return {}
    try:
        options = loads(text)
    except Exception as error:  # kombu's decoders of typed values may raise any error
        raise EnqueueError(f"options are not JSON: {text[:100]!r} ({error})") from None
    if not isinstance(options, dict):
        raise EnqueueError(f"options must be a JSON object: {text[:100]!r}")
    return options


def options_with(headers: str) -> str:
    """Return a run's options as JSON text, with the message headers of its schedule (JSON)."""
    return "{}" if headers in ("", "{}") else str(dumps({"headers": dict(loads(headers))}))


def message_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of `send_task`'s options that a run keeps for its message."""
    kept = {name: options[name] for name in MESSAGE if options.get(name)}
    kept.update({name: options[name] for name in FAMILY if options.get(name) is not None})
    if options.get("priority") not in (None, *Priority.values):  # the column has the nearest step
        kept["priority"] = options["priority"]
    if options.get("ignore_result") is False and getattr(
        options.get("task_type"), "ignore_result", False
    ):
        kept["ignore_result"] = False
    if stamped := kept.get("stamped_headers"):
        kept["stamps"] = {name: options[name] for name in stamped if name in options}
    return kept


def request_fields(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row's options under the names that they have in the request of a Celery task."""
    left_out = ("headers", "failure", "priority", "eta")
    fields = {name: value for name, value in options.items() if name not in left_out}
    if "group_id" in fields:
        fields["group"] = fields.pop("group_id")
    return fields
