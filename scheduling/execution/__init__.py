"""Attempts: a worker claims a run, executes it and ends it."""
