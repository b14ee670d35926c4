"""`python -m bench [BENCH ...] [options]`: runs the benches and prints their results."""

import argparse
import os
import signal
import sys
from types import ModuleType

import django

from bench import (
    beats,
    calls,
    edit,
    herd,
    inserting,
    latency,
    old_snapshot,
    one_offs,
    pages,
    report,
    steady,
    stored,
    throughput,
)  # fmt: skip
from bench.testbed import BenchError, Testbed, prepared

BENCHES: dict[str, ModuleType] = {
    "herd": herd,
    "beats": beats,
    "stored": stored,
    "steady": steady,
    "edit": edit,
    "pages": pages,
    "throughput": throughput,
    "one-offs": one_offs,
    "latency": latency,
    "calls": calls,
    "old-snapshot": old_snapshot,
    "inserting": inserting,
}


def main() -> int:
    parser = _parser()
    options = parser.parse_args()
    if unknown := set(options.benches) - set(BENCHES):
        parser.error(f"no bench is called {', '.join(unknown)}.")
    # A bench that is stopped ends its processes and drops its database.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        with prepared(options) as testbed:
            os.environ.update(testbed.env)
            django.setup()
            print(_report(testbed))
    except BenchError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    names = ", ".join(BENCHES)
    parser.add_argument("benches", nargs="*", metavar="BENCH", help=f"any of {names}; none: all")
    parser.add_argument("--runs", type=int, default=3, help="how often Truebeat is measured")
    parser.add_argument("--peer-runs", type=int, default=1, help="how often its peers are")
    parser.add_argument("--limit", type=float, default=60, metavar="SECONDS",
                        help="when Truebeat is given up")  # fmt: skip
    parser.add_argument("--peer-limit", type=float, default=20, metavar="SECONDS",
                        help="when a peer is given up")  # fmt: skip
    parser.add_argument("--stored", type=int, nargs="+", metavar="N",
                        help="schedules stored, for each bench that stores many; several sizes may"
                        " be given; none: each bench's own")  # fmt: skip
    for bench in BENCHES.values():
        bench.add_arguments(parser)
    return parser


def _report(testbed: Testbed) -> str:
    """Run the chosen benches; progress goes to stdout as they run."""
    print(report.heading(testbed), flush=True)
    tables = []
    for name in testbed.options.benches or BENCHES:
        print(f"{name} ... ({report.load()})", flush=True)
        tables.append(str(BENCHES[name].measure(testbed)))
    return "\n" + "\n".join(tables)


if __name__ == "__main__":
    sys.exit(main())
