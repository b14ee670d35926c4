"""The project of the peers: a Django project and a Celery app, as their documentation sets them up.

Truebeat is not installed in it, so that a peer has its own cost alone.
"""
