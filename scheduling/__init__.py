"""The ledger of scheduled work: schedules, their plans, and a row for every occurrence."""
