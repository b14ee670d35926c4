"""The tables of the ledger.

The writers of each table: PeriodicTask and its rules, and Policy, belong to users (admin, API, own
code, raw SQL). Plan belongs to beat and to the triggers of migration 0002, Run to the functions of
`planning`, `firing`, `enqueueing`, `dispatch`, `claiming`, `finishing` and `workers`; no form and
no `save()` ever writes those two.
"""

from scheduling.models.calendars import Calendar, ExcludedDate
from scheduling.models.failures import Failure, FailureGroup
from scheduling.models.runs import Backfill, Run
from scheduling.models.schedules import Plan, Policy, Schedule
from scheduling.models.services import Heartbeat
from scheduling.words import (
    FINAL,
    UNFINISHED,
    WAITING,
    WAITING_SQL,
    CatchUp,
    ExcludedDay,
    ManagedBy,
    News,
    Origin,
    Overlap,
    Priority,
    State,
)

__all__ = [
    "FINAL",
    "UNFINISHED",
    "WAITING",
    "WAITING_SQL",
    "Backfill",
    "Calendar",
    "CatchUp",
    "ExcludedDate",
    "ExcludedDay",
    "Failure",
    "FailureGroup",
    "Heartbeat",
    "ManagedBy",
    "News",
    "Origin",
    "Overlap",
    "Plan",
    "Policy",
    "Priority",
    "Run",
    "Schedule",
    "State",
]
