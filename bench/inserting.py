"""inserting: the cost of the triggers to a bulk insert of schedules through the ORM.

One process, `PeriodicTask.objects.bulk_create` in batches of 1,000, in turns with Truebeat's
triggers on and off; without them it is the cost of django-celery-beat alone.
"""

import argparse
import time

from bench.report import Table, row
from bench.schedules import TASK
from bench.testbed import Testbed


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--insert", type=int, default=20_000, metavar="N",
                        help="schedules inserted through the ORM")  # fmt: skip


def measure(testbed: Testbed) -> Table:
    size = testbed.options.insert
    found = row(f"{size:,} by bulk_create (target: the other is not below 0.5x)", 2)
    ours, theirs = found.samples
    for _ in range(testbed.options.runs):
        theirs.values.append(_insert(testbed, size, triggers=False))
        ours.values.append(_insert(testbed, size, triggers=True))
        print(f"  with triggers {ours}, without {theirs}", flush=True)
    return Table("Inserting schedules in bulk", ("with triggers", "without"), [found])


def _insert(testbed: Testbed, size: int, *, triggers: bool) -> float:
    from django_celery_beat.models import IntervalSchedule, PeriodicTask

    testbed.clear()
    rule = IntervalSchedule.objects.create(every=1, period="hours")
    schedules = [
        PeriodicTask(name=f"inserted {number}", task=TASK, interval=rule) for number in range(size)
    ]
    testbed.settle()
    with testbed.without_triggers(off=not triggers):
        started = time.perf_counter()
        PeriodicTask.objects.bulk_create(schedules, batch_size=1000)
        return time.perf_counter() - started
