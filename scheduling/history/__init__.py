"""The past in bulk: select runs, replay them, run missed occurrences, delete old runs."""
