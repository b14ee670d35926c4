"""Messages to people and their systems: mail, webhooks, guarded HTTP."""
