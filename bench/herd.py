"""herd: many schedules due in the same instant, until the last of their messages is in Redis.

Time counts from the due instant, by Postgres's clock. Both peers get the same rows and the same
lead to read or plan them before that instant.
"""

import argparse
import time
from typing import NamedTuple

from bench.ground import Ground
from bench.peers import PEERS, TRUEBEAT, Beat, Cpu, Peer
from bench.report import Row, Sample

TITLE = "A herd: schedules due in the same instant (seconds from that instant)"
COLUMNS = (PEERS[0].name, PEERS[1].name)

# An hour ago it ran, so it is due when an hour has passed, by either peer's way of counting.
LOAD = """
WITH rule AS (
    INSERT INTO django_celery_beat_intervalschedule (every, period) VALUES (1, 'hours')
    RETURNING id)
INSERT INTO django_celery_beat_periodictask
    (name, task, interval_id, args, kwargs, headers, enabled, one_off, description, date_changed,
     total_run_count, start_time, last_run_at)
SELECT 'herd ' || n, 'bench.tasks.nothing', rule.id, '[]', '{}', '{}', true, false, '', now(), 1,
    to_timestamp(%s) - interval '1 hour', to_timestamp(%s) - interval '1 hour'
  FROM rule, generate_series(1, %s) n
"""


class Herd(NamedTuple):
    """One run: seconds from the due instant to the first and to the last message."""

    planned: bool
    first: float | None
    last: float | None
    there: int
    cpu: Cpu | None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--herd", type=int, nargs="+", default=[10_000], metavar="N",
                        help="schedules due at once; several sizes may be given")  # fmt: skip


def measure(ground: Ground) -> list[Row]:
    return [row for size in ground.options.herd for row in _rows(ground, size)]


def _rows(ground: Ground, size: int) -> list[Row]:
    what = f"{size:,} due at once: "
    rows = [
        Row(what + "all in Redis", Sample(), target=_target(size)),
        Row(what + "the first one", Sample(), target="0.2 s"),
        Row(what + "CPU time of beat", Sample()),
        Row(what + "CPU time of Postgres for it", Sample()),
    ]
    for peer in PEERS:
        for _ in range(peer.runs(ground)):
            herd = _once(ground, peer, size)
            samples = [row.ours if peer is TRUEBEAT else row.theirs for row in rows]
            _note(samples, herd, peer.limit(ground))
            if not herd.planned:
                print(f"  (not all of {size:,} were planned before the instant: raise --lead)")
    return rows


def _note(samples: list[Sample], herd: Herd, limit: float) -> None:
    last, first, *cpu = samples
    there = f"{herd.there:,}"
    if herd.first is not None:
        first.values.append(herd.first)
    last.values.append(limit if herd.last is None else herd.last)
    if herd.last is None:
        last.gave_up.append(f"{there} there")
    for sample, seconds in zip(cpu, herd.cpu or (), strict=False):
        if herd.last is None:
            sample.gave_up.append(f"{seconds:.2f} s for {there}")
        else:
            sample.values.append(seconds)


def _target(size: int) -> str:
    return {10_000: "0.8 s", 100_000: "5 s"}.get(size, "")


def _once(ground: Ground, peer: Peer, size: int) -> Herd:
    window = max(10_000, 2 * size)
    lead = ground.options.lead + size / 1000
    ground.clear()
    due = round(ground.now() + lead, 3)
    with ground.without_triggers(off=not peer.own):
        ground.run(LOAD, due, due, size)
        ground.settle()
        with Beat(peer, ground, QUEUE_WINDOW=window) as beat:
            time.sleep(max(due - 0.2 - ground.now(), 0))
            planned = not ground.value("SELECT count(*) FROM scheduling_plan WHERE needs_plan")
            herd = _watch(ground, beat, due, size)
    told = f"first {_seconds(herd.first)}, last {_seconds(herd.last)}, {herd.there:,} there"
    print(f"  {peer.name}, {size:,}: {told}, QUEUE_WINDOW {window:,}, {herd.cpu}", flush=True)
    return herd._replace(planned=planned)


def _watch(ground: Ground, beat: Beat, due: float, size: int) -> Herd:
    seen: dict[str, float] = {}
    there = 0

    def all_there() -> bool:
        nonlocal there
        there = ground.hints()
        if there:
            seen.setdefault("first", ground.now() - due)
        return there >= size

    before = beat.cpu()
    if beat.wait(all_there, beat.peer.limit(ground) + 0.2, step=0.005):
        seen["last"] = ground.now() - due
    after = beat.cpu()
    cpu = (
        Cpu(*(round(b - a, 3) for a, b in zip(before, after, strict=True)))
        if before and after
        else None
    )
    return Herd(True, seen.get("first"), seen.get("last"), there, cpu)


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f} s"
