"""Truebeat beside the schedulers of today: measured from outside on real processes: `make bench`.

Each bench is one module here, named in `__main__.BENCHES`: it has `add_arguments(parser)` and
`measure(testbed) -> Table`. docs/benchmarks.md explains the figures.
"""
