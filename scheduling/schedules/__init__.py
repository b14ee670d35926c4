"""Schedules: add, pause, resume, remove and preview them.

Commands, pages and other code that acts for a user fetch a schedule and call one function of this
package. Only beat writes plans: the triggers of migration 0002 pass on these changes.
"""

from scheduling.schedules.adding import add, named, refuse_if_code, remove
from scheduling.schedules.occurrences import NextOccurrence, next_occurrences
from scheduling.schedules.pausing import pause, paused, resume
from scheduling.schedules.policies import PolicyOptions
from scheduling.schedules.rule_rows import Cron, Every, Once
from scheduling.schedules.standing import policy_of

__all__ = [
    "Cron",
    "Every",
    "NextOccurrence",
    "Once",
    "PolicyOptions",
    "add",
    "named",
    "next_occurrences",
    "pause",
    "paused",
    "policy_of",
    "refuse_if_code",
    "remove",
    "resume",
]
