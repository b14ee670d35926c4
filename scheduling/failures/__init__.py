"""Failed runs: noted, counted in groups, and reported to owners."""
