"""`python -m chaos --seconds 600 --seed 7`, or `--check var/chaos/7` to look at one again."""

import argparse
import os
import shutil
import signal
import sys
import tempfile
from dataclasses import asdict
from json import dumps
from pathlib import Path

import django

from chaos import plan, story
from chaos.checker import check
from chaos.report import report
from chaos.testbed import prepared, variables
from config.embedded.processes import ROOT


def main() -> int:
    options = _parser().parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that nothing is left behind
    place = options.check or options.place / str(options.seed)
    if not options.check:
        _play(options, place)
    kept = story.load(place)
    breaches = check(kept)
    text = report(kept, breaches)
    (place / "report.txt").write_text(text + "\n")
    print(text)
    print(f"evidence, rows, logs and this: {place}")
    return 1 if breaches else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m chaos",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=600, help="for how long there are faults")
    parser.add_argument("--schedules", type=int, default=200)
    parser.add_argument("--pace", type=float, default=4, help="seconds between faults, on average")
    parser.add_argument("--lease", type=float, default=6, help="seconds of a worker's lease")
    parser.add_argument("--settle", type=float, default=180, metavar="SECONDS",
                        help="within which everything must be final afterwards")  # fmt: skip
    parser.add_argument("--place", type=Path, default=ROOT / "var" / "chaos",
                        help="where a directory named by the seed keeps it all")  # fmt: skip
    parser.add_argument(
        "--check", type=Path, metavar="DIR", help="check a history that is there already"
    )
    return parser


def _play(options: argparse.Namespace, place: Path) -> None:
    """Carry out a seed's plan, and keep its history in `place`."""
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    planned = plan.make(
        options.seed,
        options.seconds,
        lease=options.lease,
        schedules=options.schedules,
        pace=options.pace,
    )
    (place / "plan.json").write_text(dumps(asdict(planned), indent=1))
    services = Path(tempfile.mkdtemp(prefix="truebeat-chaos-"))
    try:
        stepped = any(fault.kind == "step_clock" for fault in planned.faults)
        with prepared(place, services, options.lease, stepped=stepped) as testbed:
            os.environ.update(variables(testbed, options.lease))
            django.setup()
            from chaos.player import Player

            player = Player(testbed, planned)
            kept = player.play(options.settle)
    finally:
        shutil.rmtree(services, ignore_errors=True)
    story.save(kept, place)


if __name__ == "__main__":
    sys.exit(main())
