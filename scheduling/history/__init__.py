"""The past, in bulk: select runs, replay them, run what was missed, delete what is old."""
