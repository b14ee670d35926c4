"""The Celery app: `celery -A config beat` and `celery -A config worker` start here."""

import os
from typing import Any

from celery.signals import setup_logging

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "config.settings")

from scheduling.celery_app.app import App

app = App("truebeat")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@setup_logging.connect
def use_django_logging(**_: Any) -> None:
    """Let settings.LOGGING speak for every service, in place of Celery's own formats."""
    from logging.config import dictConfig

    from django.conf import settings

    dictConfig(settings.LOGGING)
