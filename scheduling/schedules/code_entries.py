"""Reads and checks the entries of Celery's `beat_schedule`, which declares schedules in code.

They come from the setting CELERY_BEAT_SCHEDULE, from `app.conf.beat_schedule` and from
`app.add_periodic_task`. All three end in `app.conf.beat_schedule` once the app is finalized and
every `tasks.py` is imported; Celery's own beat reads it too. Only a calendar is looked up in the
database.
"""

import math
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from celery import current_app, schedules
from django.conf import settings
from django_celery_beat.models import PeriodicTask
from django_celery_beat.tzcrontab import TzAwareCrontab
from kombu import Exchange, Queue

from scheduling import recurrence
from scheduling.base_job import discover
from scheduling.errors import EnqueueError, ScheduleError
from scheduling.models import Policy
from scheduling.postgres.sql import clean
from scheduling.registry import check_arguments, decode_call, encode, find_job
from scheduling.schedules import policies
from scheduling.schedules.rule_rows import CRON_FIELDS, Cron, Every, Solar, rule_of_row

# The keys of an entry in Celery's own format, and the key `policy`, which is added.
KEYS = ("task", "schedule", "args", "kwargs", "options", "relative", "policy")
# Columns of the row that django-celery-beat's own scheduler takes from an entry too.
COLUMNS = ("enabled", "one_off", "description")
LENGTHS = ("catch_up_window", "spread", "deadline_after")
OPTIONS = ("queue", "exchange", "routing_key", "priority", "headers", "expires")
# A hint has none of these, so they make no difference.
OF_MESSAGES = ("serializer", "compression", "delivery_mode", "retry", "retry_policy")
# The name by which django-celery-beat's own scheduler knows `expires`.
EXPIRE_SECONDS = "expire_seconds"
CANVAS = ("celery.chain", "celery.group", "celery.chord")
CODE = "app.conf.beat_schedule"
SETTING = "CELERY_BEAT_SCHEDULE"


class Entry(NamedTuple):
    """One entry: `where` it stands, the columns of its row, its rule, and the policy it asks for.

    `beat_rule` and `beat_columns` are as django-celery-beat's own scheduler would write them.
    """

    name: str
    where: str
    columns: Mapping[str, Any]
    rule: Cron | Every | Solar
    policy: Mapping[str, Any]
    beat_rule: Mapping[str, str]
    beat_columns: Mapping[str, Any]


def entries() -> dict[str, Entry]:
    """Return the entries of code by name, sorted.

    Raises:
        ScheduleError: an entry that cannot be read, that a row cannot keep, or that never fires.
    """
    return {name: read(name, entry) for name, entry in sorted(_said().items(), key=_by_name)}


def problems() -> Iterator[str]:
    """Yield the problem of each entry that cannot be read."""
    try:
        said = _said()
    except ScheduleError as error:
        yield str(error)
        return
    for name, entry in sorted(said.items(), key=_by_name):
        try:
            read(name, entry)
        except ScheduleError as error:
            yield str(error)


def misfits() -> Iterator[str]:
    """Yield each entry whose arguments do not fit its task: its runs would fail, each of them."""
    for entry in entries().values():
        job = find_job(entry.columns["task"])
        try:
            if job is not None:
                call = decode_call(entry.columns["args"], entry.columns["kwargs"])
                check_arguments(job, *call)
        except EnqueueError as error:
            yield f"{entry.where}: {error}"


def shadowed() -> list[str]:
    """Return the entries of the setting that do not count: code has replaced `beat_schedule`."""
    return sorted(map(str, _of_settings().keys() - _of_app().keys()))


def read(name: Any, entry: Any) -> Entry:
    """Return an entry, read and checked.

    Raises:
        ScheduleError: it cannot be read, a row cannot keep it, or it never fires.
    """
    where = SETTING if name in _of_settings() else CODE
    if not isinstance(name, str) or clean(name) != name:
        raise ScheduleError(f"{where} has the name {name!r}: give a text.")
    where = f"{where}[{name!r}]"
    try:
        found = _read(name, where, _mapping(f"{where} is", entry))
        _check(found)
    except (recurrence.RecurrenceError, EnqueueError) as error:
        raise ScheduleError(f"{where}: {error}") from None
    return found


def policy_of(entry: Entry) -> dict[str, Any]:
    """Return all columns of the policy that an entry asks for; a calendar is looked up.

    Raises:
        ScheduleError: the calendar does not exist.
    """
    try:
        columns = policies.checked(entry.policy)
    except ScheduleError as error:
        raise ScheduleError(f"{entry.where}, policy: {error}") from None
    default = Policy()
    return {column: getattr(default, column) for column in policies.POLICIES} | columns


def _said() -> dict[Any, Any]:
    discover()
    return {**_of_celery(), **_of_app()}


def _of_app() -> Mapping[Any, Any]:
    said = current_app.conf.beat_schedule or {}
    if not isinstance(said, Mapping):
        raise ScheduleError(f"{CODE} is {said!r}: give a dict.")
    return said


def _of_settings() -> Mapping[Any, Any]:
    said = getattr(settings, SETTING, None) or {}
    return said if isinstance(said, Mapping) else {}


def _of_celery() -> dict[str, Mapping[str, Any]]:
    """Return the entry that Celery's own beat would add: results are kept for `result_expires`."""
    if not current_app.conf.result_expires:
        return {}
    return {
        "celery.backend_cleanup": {
            "task": "celery.backend_cleanup",
            "schedule": schedules.crontab("0", "4", "*"),
            "options": {"expires": 12 * 3600, EXPIRE_SECONDS: 12 * 3600},
        }
    }


def _by_name(item: tuple[Any, Any]) -> str:
    return str(item[0])


def _read(name: str, where: str, entry: dict[str, Any]) -> Entry:
    for key in entry:
        if key not in (*KEYS, *COLUMNS):
            raise ScheduleError(f"{where} has {key!r}, which is none of {', '.join(KEYS)}.")
    if entry.get("relative"):
        raise ScheduleError(f"{where} is relative to the clock: give a crontab for that.")
    for key in ("task", "schedule"):
        if key not in entry:
            raise ScheduleError(f"{where} has no {key!r}.")
    options = _mapping(f"{where} has the options", entry.get("options") or {})
    args = entry.get("args") or ()
    if not isinstance(args, list | tuple):
        raise ScheduleError(f"{where} has the args {args!r}: give a list.")
    kwargs = _mapping(f"{where} has the kwargs", entry.get("kwargs") or {})
    call = {"args": encode(list(args)), "kwargs": encode(kwargs)}
    asked = _mapping(f"{where} has the policy", entry.get("policy") or {})
    own = {column: entry[column] for column in COLUMNS if column in entry}
    return Entry(
        name,
        where,
        {"task": _task(where, entry["task"]), **call, **_options(where, options), **own},
        _rule(where, entry["schedule"]),
        {key: _policy_value(where, key, value) for key, value in asked.items()},
        _beat_rule(entry["schedule"]),
        {"task": entry["task"], **call, **_beat_options(options), **own},
    )


def _check(entry: Entry) -> None:
    """Refuse columns that cannot be kept, and a rule that never fires."""
    try:
        policies.checked({k: v for k, v in entry.policy.items() if k != "calendar"})
    except ScheduleError as error:
        raise ScheduleError(f"{entry.where}, policy: {error}") from None
    try:
        policies.check_columns(PeriodicTask(name=entry.name, **entry.columns))
        now = datetime.now(UTC)
        recurrence.check(rule_of_row(entry.rule, now), now)
    except ScheduleError as error:
        raise ScheduleError(f"{entry.where}: {error}") from None


# --- The call ------------------------------------------------------------------------------------


def _task(where: str, task: Any) -> str:
    """Return the task's name; Celery takes the task itself as well."""
    name = task if isinstance(task, str) else None
    if name is None and not isinstance(task, Mapping):  # a signature is one, and has arguments
        name = getattr(task, "name", None)
    if not isinstance(name, str) or not name:
        raise ScheduleError(f"{where} has the task {task!r}: give its name, as 'app.tasks.name'.")
    if name in CANVAS:
        raise ScheduleError(
            f"{where} has the task {name!r}, which is not one task: give a task that starts it."
        )
    return name


def _options(where: str, options: Mapping[str, Any]) -> dict[str, Any]:
    for option in options:
        if option not in (*OPTIONS, *OF_MESSAGES, EXPIRE_SECONDS):
            raise ScheduleError(
                f"{where} has the option {option!r}, not one of {', '.join(OPTIONS)}: set an option"
                " that is the same for all runs of a task on the task."
            )
    expires = options.get("expires", options.get(EXPIRE_SECONDS))
    return {
        "queue": _named(where, "queue", options.get("queue"), Queue),
        "exchange": _named(where, "exchange", options.get("exchange"), Exchange),
        "routing_key": _named(where, "routing_key", options.get("routing_key")),
        "priority": options.get("priority"),
        "headers": encode(_mapping(f"{where} has the headers", options.get("headers") or {})),
        "expire_seconds": _expire_seconds(where, expires),
    }


def _named(where: str, option: str, value: Any, kind: type[Any] | None = None) -> str | None:
    """Return the name of a queue or an exchange; Celery takes kombu's own objects as well."""
    if kind is not None and isinstance(value, kind):
        value = value.name
    if value is None or isinstance(value, str):
        return value or None
    raise ScheduleError(f"{where} has the option {option}={value!r}: give its name.")


def _mapping(has: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ScheduleError(f"{has} {value!r}: give a dict.")
    for key in value:
        if not isinstance(key, str):  # JSON would make a text of it
            raise ScheduleError(f"{has} {dict(value)!r}: the key {key!r} is not a text.")
    return dict(value)


def _expire_seconds(where: str, expires: Any) -> int | None:
    if isinstance(expires, timedelta):
        expires = expires.total_seconds()
    if expires is None:
        return None
    if isinstance(expires, int | float) and math.isfinite(expires):
        return math.ceil(expires)
    raise ScheduleError(f"{where} has the option expires={expires!r}: give seconds.")


def _policy_value(where: str, key: str, value: Any) -> Any:
    try:
        return _length(value) if key in LENGTHS else value
    except ScheduleError as error:
        raise ScheduleError(f"{where}, policy: {error}") from None


def _length(value: Any) -> Any:
    """Return seconds as a timedelta. Other values pass through; the column check refuses them."""
    if isinstance(value, int | float):
        try:
            return timedelta(seconds=value)
        except (OverflowError, ValueError):
            raise ScheduleError(f"{value!r} is not a length of time.") from None
    return value


# --- The rule ------------------------------------------------------------------------------------


def _rule(where: str, schedule: Any) -> Cron | Every | Solar:
    if isinstance(schedule, schedules.BaseSchedule):
        _check_is_celerys(where, schedule)
    rule: Cron | Every | Solar
    if isinstance(schedule, schedules.crontab):
        fields = map(_field, _crontab_fields(schedule).values())
        rule = Cron(" ".join(fields), str(_timezone(schedule)))
    elif isinstance(schedule, schedules.solar):
        rule = Solar(schedule.event, schedule.lat, schedule.lon)
    else:
        if isinstance(schedule, schedules.schedule):
            schedule = schedule.run_every  # type: ignore[attr-defined]
        if isinstance(schedule, bool) or not isinstance(schedule, int | float | timedelta):
            raise ScheduleError(
                f"{where} has the schedule {schedule!r}: give a crontab, a timedelta, a number of"
                " seconds or a solar event."
            )
        try:
            rule = Every(_length(schedule))
        except ScheduleError as error:
            raise ScheduleError(f"{where}: {error}") from None
    return rule


def _check_is_celerys(where: str, schedule: Any) -> None:
    """Refuse a schedule that says by code of its own when it is due: a row cannot keep that."""
    kinds = (schedules.crontab, TzAwareCrontab, schedules.solar, schedules.schedule)
    if type(schedule) not in kinds:
        what = f"one of class {type(schedule).__name__}"
    elif schedule.nowfun is not None and not isinstance(schedule, TzAwareCrontab):
        what = "a clock of its own (nowfun)"
    elif getattr(schedule, "relative", False):
        what = "a schedule relative to the clock"
    else:
        return
    raise ScheduleError(
        f"{where} has the schedule {schedule!r}, {what}: give a crontab, a timedelta, a number of"
        " seconds or a solar event."
    )


def _crontab_fields(schedule: Any) -> dict[str, Any]:
    """Return the fields of a crontab, as its author wrote them, in cron's order."""
    return {field: getattr(schedule, f"_orig_{field}") for field in CRON_FIELDS}


def _timezone(schedule: Any) -> Any:
    return schedule.tz if isinstance(schedule, TzAwareCrontab) else current_app.timezone


def _field(value: Any) -> str:
    """Return one field of a crontab, which Celery takes as text, a number or a list of numbers."""
    if isinstance(value, str | int):
        return str(value).replace(" ", "")
    return ",".join(map(str, sorted(value)))


# --- The rows of django-celery-beat's own scheduler ----------------------------------------------


def _beat_rule(schedule: Any) -> dict[str, str]:
    """Return the columns of the rule's row that it writes, as texts.

    It keeps whole seconds only, and a list of minutes as Python shows it.
    """
    schedule = schedules.maybe_schedule(schedule)
    if isinstance(schedule, schedules.crontab):
        fields = {**_crontab_fields(schedule), "timezone": _timezone(schedule)}
    elif isinstance(schedule, schedules.schedule):
        run_every: Any = schedule.run_every  # type: ignore[attr-defined]
        fields = {"every": int(max(run_every.total_seconds(), 0)), "period": "seconds"}
    else:
        return {}
    return {column: str(value) for column, value in fields.items()}


def _beat_options(options: Mapping[str, Any]) -> dict[str, Any]:
    names = ("queue", "exchange", "routing_key", "priority", EXPIRE_SECONDS)
    headers = encode(options.get("headers") or {})
    return {**{name: options.get(name) for name in names}, "headers": headers}
