"""Truebeat beside django-celery-beat, measured from outside on real processes: `make bench`.

Each bench is one module here, named in `__main__.BENCHES`: it has a TITLE, two COLUMNS that are
compared, `add_arguments(parser)` and `measure(ground) -> [Row]`. docs/benchmarks.md says what the
figures mean.
"""
