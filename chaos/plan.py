"""The plan of a seed: schedules, calls of `enqueue`, edits and faults, each with its second.

Pure, and derived from the seed and the length alone: the same seed is the same plan.
"""

from dataclasses import dataclass, replace
from random import Random
from typing import Any

ZONES = (
    "UTC", "Europe/Berlin", "America/New_York", "Asia/Kathmandu", "Australia/Lord_Howe",
    "America/St_Johns", "Pacific/Chatham", "Asia/Kolkata", "Pacific/Apia", "Africa/Monrovia",
)  # fmt: skip
MINUTES = ("*", "*", "*/2", "1-59/2", "0-29,30-59", ",".join(map(str, range(60))))
HOURS = ("*", "*/1", "0-23")
WEEKDAYS = ("*", "mon-sun", "0-6")
BEATS, WORKERS = 3, 3
THREADED = 2  # the number of the worker that runs jobs in threads

# Kind of fault: how often it is drawn, and for how long it lasts, from and to: seconds, or leases.
KINDS: dict[str, tuple[int, float, float]] = {
    "kill_beat": (6, 0, 4),
    "kill_beats": (3, 2, 7),  # all of them
    "kill_worker": (6, 0, 4),  # the parent alone
    "kill_machine": (4, 0, 6),  # a worker with its children
    "kill_child": (8, 0, 0),
    "stop_worker": (3, 0, 2),  # SIGTERM, as a deploy does
    "freeze_beat": (5, 1, 13),
    "freeze_worker": (5, 1.2, 2.2),  # in leases
    "freeze_child": (2, 1.2, 2.2),  # in leases
    "skew_beat": (5, 0, 0),
    "beat_without_postgres": (4, 0.1, 13),
    "beat_without_redis": (3, 0.1, 13),
    "beat_without_both": (2, 0.1, 13),
    "worker_without_postgres": (5, 0.02, 2.2),  # in leases
    "worker_without_redis": (3, 0.02, 2.2),  # in leases
    "worker_without_both": (3, 0.02, 2.2),  # in leases
    "beat_forgotten": (2, 0, 0),
    "worker_forgotten": (3, 0, 0),
    "restart_redis": (3, 0, 5),
    "freeze_redis": (2, 1, 6),
    "flush_redis": (4, 0, 0),
    "restart_postgres": (2, 0, 4),
    "crash_postgres": (3, 0, 4),
    "terminate_backends": (5, 0, 0),
    "lock_rows": (5, 0.2, 2.2),  # in leases
    "double_hints": (6, 0, 0),
    "drop_hints": (6, 0, 0),
    "garbage_hints": (5, 0, 0),
    "step_clock": (0, 0, 0),  # in a part of the seeds alone: see _steps
}
IN_LEASES = (
    "freeze_worker", "freeze_child",
    "worker_without_postgres", "worker_without_redis", "worker_without_both", "lock_rows",
)  # fmt: skip
STEPPING = 0.25  # of all seeds have a ledger whose clock is stepped
STEP_PACE = 20.0  # seconds between such steps, on the average
# Seconds by which a beat's clock is off.
SKEWS = (-3600, -90, 0, 90, 3600)


@dataclass(frozen=True)
class Fault:
    """An act at second `at`: its kind, target and length; `draw` seeds the rest."""

    at: float
    kind: str
    target: int
    lasts: float
    draw: int


@dataclass(frozen=True)
class Planned:
    """A schedule to make. `rule` is (kind, values...); instants in it are seconds of the plan."""

    name: str
    rule: tuple[Any, ...]
    task: str
    argument: float
    catch_up: str = "latest"
    catch_up_window: float | None = None
    overlap: str = "allow"
    spread: float = 0
    max_attempts: int | None = None
    expire_seconds: int | None = None
    one_off: bool = False
    deadline_after: float | None = None
    excluded_day: str = ""  # of the calendar with these days off, counted from today
    off: tuple[int, ...] = ()


@dataclass(frozen=True)
class Edit:
    """At second `at`: pause, resume or change (the interval to `every` seconds) a schedule.

    Or pause it for `lasts` seconds; or make working days of its days off (`calendar` takes the
    calendar away, `dates` empties it), and days off of them again.
    """

    at: float
    kind: str
    schedule: str
    every: int = 0
    lasts: float = 0


@dataclass(frozen=True)
class Request:
    """At second `at`: cancel an unfinished run, or replay a final one; `draw` says which."""

    at: float
    kind: str
    draw: int


@dataclass(frozen=True)
class Backfill:
    """At second `at`: fill the last `reach` seconds of a schedule; perhaps cancel it after all."""

    at: float
    schedule: str
    reach: float
    concurrency: int
    again: bool
    cancelled_after: float | None


@dataclass(frozen=True)
class Call:
    """At second `at`: a call of `enqueue`, or of `apply_async` with a countdown.

    `then` is link, for a call with a link and an errback; chord, for a chord of two and a body; or
    chain, for one of three. With a unique key, `times` of them are made at once.
    """

    at: float
    token: str
    task: str
    argument: float
    after: float = 0
    by_celery: bool = False
    then: str = ""
    priority: str = "medium"
    max_attempts: int | None = None
    expires: float | None = None
    unique_key: str | None = None
    rolled_back: bool = False
    cancelled: bool = False
    deadline: float | None = None
    times: int = 1


@dataclass(frozen=True)
class Plan:
    """All of it, in order of time."""

    seed: int
    seconds: float
    lease: float
    faults: list[Fault]
    schedules: list[Planned]
    edits: list[Edit]
    calls: list[Call]
    requests: list[Request]
    backfills: list[Backfill]


def make(seed: int, seconds: float, *, lease: float, schedules: int, pace: float) -> Plan:
    """Return the plan of a seed: a fault each `pace` seconds on the average."""
    made = _schedules(Random(f"schedules {seed}"), schedules, seconds, lease)
    return Plan(
        seed,
        seconds,
        lease,
        sorted(
            _faults(Random(f"faults {seed}"), seconds, lease, pace)
            + _steps(Random(f"steps {seed}"), seconds),
            key=lambda fault: fault.at,
        ),
        made,
        _edits(Random(f"edits {seed}"), made, seconds),
        _calls(Random(f"calls {seed}"), seconds, lease),
        _requests(Random(f"requests {seed}"), seconds),
        _backfills(Random(f"backfills {seed}"), made, seconds),
    )


def _faults(random: Random, seconds: float, lease: float, pace: float) -> list[Fault]:
    faults, at = list[Fault](), 1.0
    weights = [weight for weight, _, _ in KINDS.values()]
    while at < seconds:
        kind = random.choices(list(KINDS), weights)[0]
        _, least, most = KINDS[kind]
        lasts = random.uniform(least, most) * (lease if kind in IN_LEASES else 1)
        target = random.randrange(BEATS if "beat" in kind else WORKERS)
        lasts = min(lasts, seconds / 2)
        faults.append(Fault(round(at, 3), kind, target, round(lasts, 3), random.randrange(2**32)))
        at += random.expovariate(1 / pace)
    return faults


def _steps(random: Random, seconds: float) -> list[Fault]:
    """Step the ledger's clock in some seeds, whose other faults are the same as without."""
    faults = list[Fault]()
    if random.random() >= STEPPING:
        return faults
    at = random.uniform(2, STEP_PACE / 2)
    while at < seconds:
        faults.append(Fault(round(at, 3), "step_clock", 0, 0, random.randrange(2**32)))
        at += 2 + random.expovariate(1 / (STEP_PACE - 2))
    return faults


def _schedules(random: Random, count: int, seconds: float, lease: float) -> list[Planned]:
    made = [_schedule(random, number, seconds, lease) for number in range(count)]
    return [_with_calendar(random, schedule) for schedule in made]


def _with_calendar(random: Random, schedule: Planned) -> Planned:
    """Give some a calendar: of one whose days off are now, it has to be found out in minutes."""
    kind = schedule.rule[0]
    if kind not in ("cron", "every") or random.random() > (0.4 if kind == "cron" else 0.1):
        return schedule
    treatment = random.choice(["skip", "skip", "skip", "previous", "next"])
    off = random.choice([(-1, 0, 1), (-1, 0, 1), (5,)])
    rule = schedule.rule
    if treatment != "skip" and kind == "cron" and random.random() < 0.8:
        # An occurrence due yesterday alone, on a day off, takes place today; or one due tomorrow.
        off = (1,) if treatment == "previous" else (-1,)
        rule = ("cron", random.choice(MINUTES), "*", off[0], "")
    return replace(schedule, rule=rule, excluded_day=treatment, off=off)


def _schedule(random: Random, number: int, seconds: float, lease: float) -> Planned:
    kind = random.choices(["every", "cron", "once", "noon"], [60, 20, 15, 5])[0]
    name = f"{kind}-{number}"
    task, argument = _work(random, lease)
    max_attempts = random.choice([None, None, 1, 2, 5])
    if kind == "once":
        rule: tuple[Any, ...] = ("once", round(random.uniform(-5, seconds), 3))
        return Planned(name, rule, task, argument, one_off=True, max_attempts=max_attempts)
    if kind == "noon":
        return Planned(name, ("noon", round(random.uniform(2, seconds), 3)), task, argument)
    catch_up = random.choice(["latest", "latest", "all", "none"])
    spread = random.choice([0, 0, 0, 3])
    if kind == "cron":
        rule = ("cron", *map(random.choice, (MINUTES, HOURS, WEEKDAYS, ZONES)))
        return Planned(
            name, rule, task, argument, catch_up, random.choice([None, 20.0]), spread=spread,
            max_attempts=max_attempts, deadline_after=random.choice([None, 0.1, 5.0]),
        )  # fmt: skip
    step = random.choice([2, 3, 5, 5, 7, 10, 10, 15, 20, 30])
    overlap = random.choice(["allow", "allow", "skip", "queue", "replace"])
    if overlap != "allow" and random.random() < 0.25:
        task, argument = "work", round(min(step, 8) * random.uniform(0.3, 1.2), 2)
    if catch_up == "all":  # one at a time: it must be able to keep up
        step, argument = max(step, 5), min(argument, 2)
    return Planned(
        name,
        ("every", step, random.choice([None, round(random.uniform(-100, 5), 3)])),
        task,
        argument,
        catch_up,
        random.choice([None, 3.0, 12.0]),
        overlap,
        spread,
        max_attempts,
        random.choice([None, None, None, 8]),
        deadline_after=random.choice([None, None, 0.1, 5.0]),
    )


def _work(random: Random, lease: float) -> tuple[str, float]:
    """Return a job and its argument: most are quick, some outlast a lease, some fail."""
    task = random.choices(["work", "flaky", "retrying", "poison"], [88, 6, 5, 1])[0]
    if task != "work":
        return task, random.choice([1, 1, 2, 3])
    quick = random.choice([0, 0, 0, 0.02, 0.1, 0.3])
    return task, round(random.uniform(0.5, 1.5) * lease if random.random() < 0.02 else quick, 2)


def _edits(random: Random, schedules: list[Planned], seconds: float) -> list[Edit]:
    """Change the interval of some, pause and resume others; never both of one."""
    edits = []
    for schedule in schedules:
        draw = random.random()
        if schedule.one_off or draw > (0.6 if schedule.off else 0.25):
            continue
        at, every = random.uniform(2, seconds / 3), 4
        if schedule.off:
            if 0 in schedule.off and schedule.rule[0] == "cron":
                edits += _changes_of_days(random, schedule, seconds)
            continue
        if draw > 0.12 and schedule.rule[0] == "every":
            while at < seconds - 5:
                edits.append(Edit(round(at, 3), "change", schedule.name, every))
                at, every = at + random.uniform(15, 60), every + 1
        elif draw <= 0.12:
            while at < seconds - 12:
                lasts = round(random.uniform(3, 10), 3)
                if random.random() < 0.4:
                    edits.append(Edit(round(at, 3), "pause_until", schedule.name, lasts=lasts))
                else:
                    edits.append(Edit(round(at, 3), "pause", schedule.name))
                    edits.append(Edit(round(at + lasts, 3), "resume", schedule.name))
                at += random.uniform(25, 60)
    return sorted(edits, key=lambda edit: edit.at)


def _changes_of_days(random: Random, schedule: Planned, seconds: float) -> list[Edit]:
    """Make working days of days off, and the other way round, again and again."""
    kind, edits = random.choice(["calendar", "dates"]), []
    at = random.uniform(2, seconds / 3)
    while at < seconds - 5:
        edits.append(Edit(round(at, 3), kind, schedule.name))
        at += random.uniform(15, 90)
    return edits


def _requests(random: Random, seconds: float) -> list[Request]:
    requests, at = list[Request](), 3.0
    while at < seconds:
        kind = random.choice(["cancel", "replay"])
        requests.append(Request(round(at, 3), kind, random.randrange(2**32)))
        at += random.expovariate(1)
    return requests


def _backfills(random: Random, schedules: list[Planned], seconds: float) -> list[Backfill]:
    """Fill the past of some schedules; that of an interval has a beginning."""
    fills, at = list[Backfill](), random.uniform(1, 6)
    may = [schedule for schedule in schedules if schedule.rule[0] in ("cron", "every")]
    while at < seconds - 2 and may:
        schedule = random.choice(may)
        cron = schedule.rule[0] == "cron"
        reach = random.uniform(60, 900) if cron else random.uniform(5, 20) * schedule.rule[1]
        fills.append(
            Backfill(
                round(at, 3),
                schedule.name,
                round(reach, 3),
                random.choice([1, 1, 2, 3]),
                random.random() < 0.3,
                random.choice([None, None, None, round(random.uniform(0.5, 10), 3)]),
            )
        )
        at += random.expovariate(1 / 8)
    return fills


def _calls(random: Random, seconds: float, lease: float) -> list[Call]:
    calls, at = list[Call](), 0.0
    while at < seconds:
        task, argument = _work(random, lease)
        unique = random.random() < 0.1
        calls.append(
            Call(
                round(at, 3),
                f"call-{len(calls)}",
                task,
                argument,
                after=random.choice([0, 0, round(random.uniform(0.1, 20), 3)]),
                by_celery=random.random() < 0.2,
                then=random.choice([*[""] * 12, "link", "chord", "chain"]),
                priority=random.choice(["front", "high", "medium", "medium", "low"]),
                max_attempts=random.choice([None, None, 1, 1, 2, 5]),
                expires=random.choice([None] * 9 + [5.0]),
                unique_key=f"key-{random.randrange(3)}" if unique else None,
                rolled_back=random.random() < 0.05,
                cancelled=random.random() < 0.05,
                deadline=random.choice([None, None, 0.3, 2.0, 30.0]),
                times=random.choice([1, 2, 4]) if unique else 1,
            )
        )
        at += random.expovariate(5)
    return calls
