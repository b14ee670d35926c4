"""What Celery is given in place of its own: the app, its control, its result backend."""
