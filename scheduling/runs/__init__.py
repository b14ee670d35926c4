"""Runs: the ways to make one, the contents of its row, and the runs that follow it."""
