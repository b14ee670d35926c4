"""The proof: breaks beats, workers, Postgres and Redis at random while jobs keep a diary.

`make chaos`, or `python -m chaos --seconds 600 --seed 7`. One seed is one plan of schedules, jobs,
edits and faults. Afterwards a checker, which shares no code with the scheduler, compares the
jobs' own diary with the rules and with the ledger. docs/reliability.md has the results.
"""
