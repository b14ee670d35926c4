"""Shared fixtures of the tests with real processes."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from tests.system.processes import System


@pytest.fixture
def system(
    transactional_db: None,
    redis_client: redis.Redis,
    service_env: dict[str, str],
    tmp_path: Path,
) -> Iterator[System]:
    """Beats and workers on this test's databases, with leases and retries of a second or so."""
    quick = {
        "RUN_LEASE_SECONDS": "3",
        "RETRY_BACKOFF_SECONDS": "0.4",
        "CANCEL_GRACE_SECONDS": "1",
    }
    with System(service_env | quick, tmp_path) as processes:
        yield processes


@pytest.fixture
def evidence(tmp_path: Path) -> Path:
    """A file to which jobs write a line for each start, as evidence outside the ledger."""
    path = tmp_path / "evidence"
    path.touch()
    return path
