"""inserting: what the triggers add to a bulk insert of schedules through the ORM.

One process, `PeriodicTask.objects.bulk_create` in batches of 1,000, in turns with Truebeat's
triggers on and off; off is what django-celery-beat alone would cost.
"""

import argparse
import time

from bench.ground import Ground
from bench.report import Row, Sample

TITLE = "Inserting schedules in bulk"
COLUMNS = ("with triggers", "without")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--insert", type=int, default=100_000, metavar="N",
                        help="schedules inserted through the ORM")  # fmt: skip


def measure(ground: Ground) -> list[Row]:
    size = ground.options.insert
    row = Row(f"{size:,} by bulk_create", Sample(), Sample(), target="ratio 0.5x")
    for _ in range(ground.options.runs):
        row.theirs.values.append(_insert(ground, size, triggers=False))
        row.ours.values.append(_insert(ground, size, triggers=True))
        print(f"  with triggers {row.ours}, without {row.theirs}", flush=True)
    return [row]


def _insert(ground: Ground, size: int, *, triggers: bool) -> float:
    from django_celery_beat.models import IntervalSchedule, PeriodicTask

    ground.clear()
    rule = IntervalSchedule.objects.create(every=1, period="hours")
    schedules = [
        PeriodicTask(name=f"inserted {number}", task="bench.tasks.nothing", interval=rule)
        for number in range(size)
    ]
    ground.settle()
    with ground.without_triggers(off=not triggers):
        started = time.perf_counter()
        PeriodicTask.objects.bulk_create(schedules, batch_size=1000)
        return time.perf_counter() - started
