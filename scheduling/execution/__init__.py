"""From claim to end: an attempt in a worker's child, and every way in which a run ends."""
