"""Reminders of records that expire: lifecycle ids, lead times, the sweep, deliveries."""
