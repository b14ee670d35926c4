"""Redis, the doorbell: the transport of hints, the gate of workers, the bell that wakes beat."""
