"""A plain Celery app: `celery -A bench.plain.app beat` and `celery -A bench.plain.app worker`.

The environment chooses where results are kept: not at all, in Redis, or in django-celery-results.
"""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "bench.plain.settings")

# Not the current app: the benches send through it from a process that is Truebeat's.
app = Celery("plain", broker=os.environ["REDIS_URL"], set_as_current=False)
app.conf.update(
    imports=["bench.tasks"],
    timezone="UTC",
    result_backend=os.environ.get("BENCH_RESULTS", "disabled://"),
    result_extended=True,
    result_expires=None,  # no clean-up entry among the schedules
    redbeat_redis_url=os.environ["REDIS_URL"],
    redbeat_redis_options={},
    broker_connection_retry_on_startup=True,
)
