"""Triggers: jobs that call other systems, by HTTP or through a message broker."""
