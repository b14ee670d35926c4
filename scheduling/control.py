"""`revoke`, Celery's word for cancel: for runs it is written in the ledger."""

from typing import Any

import django
from celery.app.control import Control as CeleryControl
from celery.utils.functional import maybe_list
from django.apps import apps

from scheduling.errors import HeldError, SchedulingError

BY = "revoke"


class Control(CeleryControl):
    """Celery's remote control, whose `revoke` no restart of a worker forgets.

    A run that waits is cancelled at once. One that runs goes on, unless `terminate` is given: then
    it is cancelled too.
    """

    def broadcast(self, command: str, arguments: Any = None, *args: Any, **kwargs: Any) -> Any:
        """Tell the workers something (see Celery's); first tell the ledger, where that is due."""
        if command == "revoke" and arguments:
            _revoke(arguments.get("task_id"), terminate=bool(arguments.get("terminate")))
        return super().broadcast(command, arguments, *args, **kwargs)


def _revoke(task_ids: Any, *, terminate: bool) -> None:
    if not apps.ready:
        django.setup()  # the command `celery control` does not
    from scheduling import waiting
    from scheduling.running import run_id_of

    for task_id in maybe_list(task_ids) or ():
        run_id = run_id_of(task_id)
        if run_id is not None and terminate:
            try:
                waiting.cancel(run_id, by=BY)
            except HeldError:
                raise  # it has not been cancelled, and nobody will
            except SchedulingError:
                pass  # no run, or one that has ended
        elif run_id is not None:
            waiting.cancel_waiting(run_id, by=BY)
