"""The ledger of scheduled work: schedules, their plans, and a row for every occurrence."""

__version__ = "0.1.0"  # as pyproject.toml has it
