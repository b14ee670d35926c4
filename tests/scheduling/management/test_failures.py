import json
from uuid import UUID

import pytest

from scheduling.models import FailureGroup
from tests.scheduling.commands import called, refusal
from tests.scheduling.failures.test_groups import fail, settle
from tests.scheduling.ledger import schedule

pytestmark = pytest.mark.django_db


def failed() -> FailureGroup:
    fail(schedule("nightly"), "ValueError: \x1b[31mred")
    settle()
    return FailureGroup.objects.get()


def test_it_says_when_nothing_has_failed() -> None:
    assert called("failures", "list").lines == ["No failure is open."]
    assert called("failures", "list", "--json").out == "[\n]\n"


def test_it_lists_what_is_open() -> None:
    group = failed()
    head, row, error, _ = called("failures", "list").lines
    assert head.split() == ["ID", "TIMES", "LAST", "TASK"]
    assert error == r"  ValueError: \x1b[31mred"
    assert row.split()[:2] == [str(group.pk), "1"]
    (entry,) = json.loads(called("failures", "list", "--json").out)
    assert (entry["exception"], entry["count"], entry["schedules"]) == (
        "ValueError", 1, ["nightly"],
    )  # fmt: skip


def test_what_is_resolved_is_left_out_until_it_is_reopened() -> None:
    group = failed()
    assert called("failures", "resolve", str(group.pk)).code == 0
    assert "already" in called("failures", "resolve", str(group.pk)).err
    assert called("failures", "list").lines == ["No failure is open."]
    assert len(called("failures", "list", "--all").lines) == 4
    assert called("failures", "reopen", str(group.pk)).code == 0
    assert "already open" in called("failures", "reopen", str(group.pk)).err
    assert len(called("failures", "list").lines) == 4


@pytest.mark.parametrize("action", ["resolve", "reopen"])
def test_what_is_not_there_is_refused(action: str) -> None:
    assert "no failure has the id" in refusal("failures", action, str(UUID(int=0)))
