import pytest

from scheduling.management import output


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Print to a terminal of a hundred columns."""
    monkeypatch.setattr(output, "terminal_width", lambda: 100)
