"""`celery beat`: what is due is fired, published, raised and recovered, tick by tick."""

from scheduling.beat.scheduler import Scheduler

__all__ = ["Scheduler"]
