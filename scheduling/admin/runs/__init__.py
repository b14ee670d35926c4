"""Runs: the page of every occurrence and every job."""
