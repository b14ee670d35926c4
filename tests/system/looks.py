"""Helpers of tests with real processes: runs in the ledger, and lines that jobs wrote."""

from pathlib import Path
from uuid import UUID

from scheduling.models import UNFINISHED, Run


def run_of(run_id: UUID) -> Run:
    return Run.objects.get(pk=run_id)


def all_final() -> bool:
    return Run.objects.exists() and not Run.objects.filter(state__in=UNFINISHED).exists()


def lines(evidence: Path) -> list[str]:
    return evidence.read_text().splitlines()
