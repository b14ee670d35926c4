import logging

import pytest

from scheduling.logs import LineFormatter, event

logger = logging.getLogger("tests.logs")


def line(record: logging.LogRecord) -> str:
    record.created = 1_795_176_000.25
    return LineFormatter("beat").format(record)


def test_an_event_is_one_line_with_its_service_and_ids(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tests.logs")
    event(logger, "run_claimed", run=7, task="a b", reason="")
    assert line(caplog.records[0]) == (
        "2026-11-20T12:00:00.250Z beat INFO run_claimed run=7 task='a b'"
    )


def test_a_value_with_line_ends_stays_on_one_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tests.logs")
    event(logger, "run_failed", error='first\nsecond "third"')
    assert line(caplog.records[0]).endswith("""error='first\\nsecond "third"'""")


def test_an_event_names_the_line_that_told_it(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tests.logs")
    event(logger, "run_claimed")
    assert caplog.records[0].filename == "test_logs.py"


def test_a_level_that_is_off_costs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "tests.logs")
    event(logger, "hint_dropped", level=logging.DEBUG, run=7)
    assert caplog.records == []


def test_other_peoples_records_and_tracebacks_are_formatted_too() -> None:
    try:
        raise ValueError("why")
    except ValueError as error:
        problem = (type(error), error, error.__traceback__)
    record = logging.LogRecord("x", logging.ERROR, "f", 1, "it is %s", ("so",), problem)
    first, *rest = line(record).splitlines()
    assert first == "2026-11-20T12:00:00.250Z beat ERROR it is so"
    assert rest[-1] == "ValueError: why"


def test_a_line_can_be_written_whatever_is_in_it() -> None:
    record = logging.LogRecord("x", logging.ERROR, "f", 1, "bad \ud800 text", (), None)
    assert line(record).encode().endswith(b"bad \\ud800 text")
