"""Heartbeats of the processes that do the work."""

from django.db import models


class Heartbeat(models.Model):
    """A beat or a worker that is, or was, alive; each writes its own row."""

    name = models.CharField(max_length=255, primary_key=True)
    service = models.CharField(max_length=10)
    host = models.CharField(max_length=255)
    pid = models.IntegerField()
    version = models.CharField(max_length=100)
    started_at = models.DateTimeField()
    seen_at = models.DateTimeField()
    doing = models.CharField(max_length=200)

    def __str__(self) -> str:
        return self.name
