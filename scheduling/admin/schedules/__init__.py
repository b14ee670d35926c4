"""Schedules: one page for django-celery-beat's periodic tasks."""
