"""The project's settings, with the jobs that keep a diary."""

from config.settings import *  # noqa: F403
from config.settings import INSTALLED_APPS

INSTALLED_APPS = [*INSTALLED_APPS, "chaos"]
CELERY_BEAT_SCHEDULE = {}
