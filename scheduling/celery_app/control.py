"""`revoke`, Celery's word for cancel: it cancels runs in the ledger."""

from contextlib import suppress
from typing import Any
from uuid import UUID

from celery.app.control import Control as CeleryControl
from celery.utils.functional import maybe_list

from scheduling.celery_app.remote_control import is_command, signed
from scheduling.celery_app.sending import set_up
from scheduling.errors import EnqueueError, RowLockedError, SchedulingError

BY = "revoke"
# Celery makes arguments of the command of all others.
OF_A_BROADCAST = {"destination", "connection", "reply", "timeout", "limit", "callback", "channel",
                  "pattern", "matcher"}  # fmt: skip


class Control(CeleryControl):
    """Celery's remote control, whose `revoke` no restart of a worker forgets.

    A waiting run is cancelled at once. A running one goes on, unless `terminate` is given: then it
    is cancelled too. Stamps cancel runs that exist at this moment; for plain messages, workers go
    on to refuse later ones as well.
    """

    def broadcast(self, command: str, arguments: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Send a command to the workers (see Celery's); a revoke is first written to the ledger."""
        if command == "revoke" and arguments:
            _revoke(arguments.get("task_id"), terminate=bool(arguments.get("terminate")))
        if command == "revoke_by_stamped_headers" and arguments:
            stamped = _stamped(arguments.get("headers") or {})
            _revoke(stamped, terminate=bool(arguments.get("terminate")))
        if is_command(command):
            more = {name: kwargs.pop(name) for name in kwargs.keys() - OF_A_BROADCAST}
            arguments = signed(command, {**(arguments or {}), **more})
        return super().broadcast(command, arguments, *args, **kwargs)


def _stamped(headers: Any) -> list[UUID]:
    """Return the unfinished runs with one of these stamps: {name: stamp or stamps}, or name=stamp.

    It reads the options of all unfinished runs.
    """
    set_up()
    from scheduling.models import UNFINISHED, Run
    from scheduling.runs.message_options import read_options

    if isinstance(headers, list):
        headers = dict(header.split("=", 1) for header in headers)
    wanted = {name: set(maybe_list(stamps)) for name, stamps in headers.items()}
    runs = Run.objects.filter(state__in=UNFINISHED, options__contains='"stamps"')
    found = list[UUID]()
    for run_id, options in runs.values_list("pk", "options").iterator():
        with suppress(EnqueueError, AttributeError, TypeError):  # raw SQL can write anything
            stamps = read_options(options)["stamps"]
            if any(wanted[name] & set(maybe_list(stamps.get(name)) or ()) for name in wanted):
                found.append(run_id)
    return found


def _revoke(task_ids: Any, *, terminate: bool) -> None:
    set_up()
    from scheduling.execution import cancelling
    from scheduling.runs.running import run_id_of

    for task_id in maybe_list(task_ids) or ():
        run_id = run_id_of(task_id)
        if run_id is not None and terminate:
            try:
                cancelling.cancel(run_id, by=BY)
            except RowLockedError:
                raise  # the run has not been cancelled, and the caller must know
            except SchedulingError:
                pass  # the run does not exist or has ended
        elif run_id is not None:
            cancelling.cancel_waiting(run_id, by=BY)
