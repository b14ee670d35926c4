"""Additions to a Celery worker: leases, a gate, and endings that only its parent can see."""
