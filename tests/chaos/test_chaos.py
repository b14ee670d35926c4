"""One short seed of `make chaos`."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A seed whose twenty seconds hold nearly every kind of fault.
SEED = "37113"
OPTIONS = f"--seed {SEED} --seconds 20 --schedules 40 --pace 1 --lease 3 --settle 90"


@pytest.mark.chaos
def test_a_short_seed_keeps_every_promise(tmp_path: Path) -> None:
    played = subprocess.run(
        [sys.executable, "-m", "chaos", *OPTIONS.split(), "--place", str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, timeout=280,
    )  # fmt: skip
    assert played.returncode == 0, played.stdout + played.stderr[-4000:]
    assert "breaches: 0" in played.stdout
    assert (tmp_path / SEED / "plan.json").exists()
