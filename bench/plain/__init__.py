"""What the peers run on: a Django project and a Celery app as their own documentation sets them up.

Nothing of Truebeat's is installed here, so that a peer costs what it costs alone.
"""
