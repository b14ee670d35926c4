"""Runs that ended as failed: noted, counted in groups, and told to owners."""
