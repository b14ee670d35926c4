"""Replacements for parts of Celery: the app, its control, its result backend."""
