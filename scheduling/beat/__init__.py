"""`celery beat`: each tick fires, publishes, escalates and recovers due work."""

from scheduling.beat.scheduler import Scheduler

__all__ = ["Scheduler"]
