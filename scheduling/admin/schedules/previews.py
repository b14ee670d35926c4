"""Shows the effect of a change in a schedule's form before it is saved."""

from datetime import datetime
from typing import Any

from django_celery_beat.models import PeriodicTask

from scheduling.admin.common.display import moment
from scheduling.schedules.editing import LOOK_AHEAD, occurrences_changed
from scheduling.schedules.standing import with_rows


def preview_of(edited: PeriodicTask, now: datetime) -> dict[str, Any]:
    """Return how the schedule's occurrences change if it is saved as it stands in its form."""
    before = with_rows().get(pk=edited.pk)
    found = occurrences_changed(before, edited, now)
    if found is None or found.moved is None:
        return {"moved": None, "days": LOOK_AHEAD.days}
    old, new = (moment(instant) if instant else "none" for instant in found.moved)
    return {
        "days": LOOK_AHEAD.days,
        "until": "" if found.complete else moment(found.until),
        "added": found.added,
        "removed": found.removed,
        "kept": found.kept,
        "moved": (old, new),
    }
