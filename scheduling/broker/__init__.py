"""Redis, the doorbell: the transport of hints, its valve, and the bell that wakes beat."""
