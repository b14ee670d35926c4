"""Truebeat beside what people use today, measured from outside on real processes: `make bench`.

Each bench is one module here, named in `__main__.BENCHES`: it has `add_arguments(parser)` and
`measure(testbed) -> Table`. docs/benchmarks.md says what the figures mean.
"""
